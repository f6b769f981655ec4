now() { cut -d' ' -f1 /proc/uptime; }
packets() { cat /sys/class/net/lo/statistics/rx_packets; }
is_quiet() { # nothing goes over the link any more
  before=$(packets)
  sleep 0.5
  [ $(($(packets) - before)) -lt 4 ]
}
read_tree() { # read_tree NAME: reads the tree on the device, and tells what that took
  mount -t ext4 -o ro,noload "$device" /mnt/pull
  forget
  from=$(packets) since=$(now)
  sums /mnt/pull >read
  took=$(($(packets) - from))
  echo "$1: $took packets, from $since to $(now) s"
  cmp written read
  umount /mnt/pull
}

serve 7070 "disk=file:disk?size=8MiB"
mkdir -p /mnt/pull
device pw://127.0.0.1:7070/disk --writable
mkfs.ext4 -q "$device"
mount -t ext4 "$device" /mnt/pull
tree /mnt/pull
sums /mnt/pull >written
umount /mnt/pull
kill -TERM "$process"
ends "$process"

# 10 ms there and back.
/sbin/tc qdisc add dev lo root netem delay 5ms limit 10000
trap '/sbin/tc qdisc del dev lo root' EXIT
device pw://127.0.0.1:7070/disk --direct
read_tree direct
direct=$took
kill -TERM "$process"
ends "$process"
device pw://127.0.0.1:7070/disk
# While it fills itself, and when it has.
mount -t ext4 -o ro,noload "$device" /mnt/pull
dd if=/bin/busybox bs=64k count=8 | cmp - /mnt/pull/a/busybox
umount /mnt/pull
eventually is_quiet
read_tree managed
[ "$took" -lt $((direct / 4)) ] || never "managed takes fewer packets: $took, and direct $direct"
kill -TERM "$process"
ends "$process"

# One that is written to fills itself, too, and shows what was written.
device pw://127.0.0.1:7070/disk --writable
mount -t ext4 "$device" /mnt/pull
rm /mnt/pull/a/b/file3
random 100 /mnt/pull/c/new
sums /mnt/pull >written
sync
eventually is_quiet
umount /mnt/pull
read_tree 'managed, written to'
kill -TERM "$process"
ends "$process"

# A cache in a file is there after a restart, and nothing of it is pulled again.
device pw://127.0.0.1:7070/disk --cache cache
eventually is_quiet
kill -TERM "$process"
ends "$process"
device pw://127.0.0.1:7070/disk --cache cache
sleep 0.5
read_tree 'from a cache'
[ "$took" -lt $((direct / 4)) ] || never "a cache takes fewer packets: $took, and direct $direct"
kill -TERM "$process"
ends "$process"
