serve 7070 "disk=file:disk?size=16MiB"
device pw://127.0.0.1:7070/disk --writable
[ "$(cat "/sys/block/${device#/dev/}/size")" = 32768 ]
[ "$(cat "/sys/block/${device#/dev/}/queue/logical_block_size")" = 4096 ]
mkfs.ext4 -q "$device"
mkdir -p /mnt/ext4
mount -t ext4 "$device" /mnt/ext4
tree /mnt/ext4
sums /mnt/ext4 >written
[ "$(wc -l <written)" = 17 ]
sync
umount /mnt/ext4
kill -TERM "$process"
ends "$process"
is_down "$device"

# To read only, and by any number.
device pw://127.0.0.1:7070/disk
[ "$(cat "/sys/block/${device#/dev/}/ro")" = 1 ]
fails dd if=/dev/zero "of=$device" bs=4k count=1 conv=notrunc,fsync
mount -t ext4 -o ro "$device" /mnt/ext4
sums /mnt/ext4 >read
cmp written read
umount /mnt/ext4
pagewire info "$device"
pagewire info "$device" | grep -q 'pw://127.0.0.1:7070/disk'
kill -INT "$process"
ends "$process"

# The file behind it is a file system of its own, once nobody serves it.
kill -TERM "$server"
ends "$server"
mount -t ext4 -o ro,loop disk /mnt/ext4
sums /mnt/ext4 >read
cmp written read
umount /mnt/ext4
