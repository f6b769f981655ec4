serve 7070 "disk=file:disk?size=20MiB"
device pw://127.0.0.1:7070/disk --writable --patience 20s
mkfs.ext4 -q -O ^has_journal "$device"
mkdir -p /mnt/killed
mount -t ext4 "$device" /mnt/killed
random 1024 data
dd if=data of=/mnt/killed/synced bs=64k conv=fsync
kill -KILL "$server"
wait "$server" || true
# Nobody answers now, and it is not lost either.
dd if=data of=/mnt/killed/meanwhile bs=64k conv=fsync &
writing=$!
sleep 1
serve 7070 disk=file:disk
ends "$writing"
forget
cmp data /mnt/killed/synced
cmp data /mnt/killed/meanwhile
umount /mnt/killed

# What was acknowledged, and pushed, and never flushed: the next server does not have it, and is told.
random 256 raw
dd if=raw "of=$device" bs=64k seek=200 oflag=direct conv=notrunc
sleep 1.5
kill -KILL "$server"
wait "$server" || true
serve 7070 disk=file:disk
dd if=/dev/zero "of=$device" bs=4k seek=5000 count=1 conv=notrunc,fsync
kill -TERM "$process"
ends "$process"
device pw://127.0.0.1:7070/disk
dd "if=$device" bs=64k skip=200 count=4 | cmp - raw
mount -t ext4 -o ro "$device" /mnt/killed
cmp data /mnt/killed/meanwhile
umount /mnt/killed
kill -TERM "$process"
ends "$process"
