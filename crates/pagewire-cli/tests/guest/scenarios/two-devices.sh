serve 7070 "one=file:one?size=8MiB" "two=file:two?size=8MiB"
device pw://127.0.0.1:7070/one --writable
first=$device first_process=$process
device pw://127.0.0.1:7070/two --writable
[ "$first" != "$device" ]
mkdir -p /mnt/first /mnt/second
(mkfs.ext4 -q -O ^has_journal "$first" && mount -t ext4 "$first" /mnt/first && tree /mnt/first) &
filling=$!
mkfs.ext4 -q -O ^has_journal "$device"
mount -t ext4 "$device" /mnt/second
tree /mnt/second
ends "$filling"
sums /mnt/first >first
sums /mnt/second >second
fails cmp -s first second
umount /mnt/first /mnt/second
kill -TERM "$first_process"
ends "$first_process"
mount -t ext4 "$device" /mnt/second
forget
sums /mnt/second | cmp - second
umount /mnt/second
kill -TERM "$process"
ends "$process"
device pw://127.0.0.1:7070/one
mount -t ext4 -o ro "$device" /mnt/first
sums /mnt/first | cmp - first
umount /mnt/first
kill -TERM "$process"
ends "$process"
