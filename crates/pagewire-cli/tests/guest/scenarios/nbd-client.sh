pagewire serve "disk=file:disk?size=12MiB" --nbd nbd://127.0.0.1:10809 --nbd "nbd+unix:///?socket=$PWD/socket" \
  >server.out 2>server.err &
server=$!
eventually grep -q 'nbd+unix' server.out
nbd-client -l 127.0.0.1 | grep -q disk
nbd-client 127.0.0.1 10809 /dev/nbd1 -N disk -C 2 -b 4096
mkfs.ext4 -q /dev/nbd1
mkdir -p /mnt/client
mount -t ext4 /dev/nbd1 /mnt/client
tree /mnt/client
sums /mnt/client >written
umount /mnt/client
nbd-client -d /dev/nbd1
nbd-client -unix "$PWD/socket" /dev/nbd1 -N disk -b 4096
mount -t ext4 /dev/nbd1 /mnt/client
sums /mnt/client | cmp - written

# What was synced is there after a server that was killed.
random 1024 data
dd if=data of=/mnt/client/synced bs=64k conv=fsync
kill -KILL "$server"
wait "$server" || true
umount -l /mnt/client || true
nbd-client -d /dev/nbd1
pagewire serve disk=file:disk --nbd nbd://127.0.0.1:10809 >server.out 2>>server.err &
server=$!
eventually grep -q listening server.out
nbd-client 127.0.0.1 10809 /dev/nbd2 -N disk -b 4096
mount -t ext4 /dev/nbd2 /mnt/client
cmp data /mnt/client/synced
umount /mnt/client
nbd-client -d /dev/nbd2
kill -TERM "$server"
ends "$server"
