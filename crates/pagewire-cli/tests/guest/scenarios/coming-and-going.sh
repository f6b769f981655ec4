random 8192 disk
serve 7070 disk=file:disk "other=file:other?size=8MiB"

# A device that is in use is named, and so is who uses it.
pagewire mount pw://127.0.0.1:7070/disk /dev/nbd2 --via nbd --background >device.out
grep -q 'mounted /dev/nbd2' device.out
process=$(sed 's/pagewire process \([0-9]*\) .*/\1/' /sys/block/nbd2/backend)
fails pagewire mount pw://127.0.0.1:7070/other /dev/nbd2 --via nbd 2>said
grep -q "in use.*7070/disk.*$process" said
sleep 1000 </dev/nbd2 &
holder=$!
eventually test -b "/proc/$holder/fd/0"
kill -TERM "$process"
sleep 1
kill -0 "$process"
dd if=/dev/nbd2 bs=1M count=1 | cmp - disk -n 1048576
kill "$holder"
eventually is_down /dev/nbd2
eventually is_gone "$process"

# A second signal does not wait for who uses it.
device pw://127.0.0.1:7070/other --writable
mkfs.ext4 -q -O ^has_journal "$device"
mkdir -p /mnt/going
mount -t ext4 "$device" /mnt/going
kill -TERM "$process"
eventually grep -q 'in use by the mount at /mnt/going' device.err
kill -TERM "$process"
ends "$process"
fails cat "$device" >read 2>&1
umount -l /mnt/going
eventually is_down "$device"

# One that somebody else takes down is noticed.
device pw://127.0.0.1:7070/other --writable
dd if=disk "of=$device" bs=64k count=16 conv=notrunc
nbd-client -d "$device"
ends "$process"
# The server puts it in its place after the flush, from its journal.
eventually cmp other disk -n 1048576

# What a killed process has left answers with errors, is told from others, and is taken down by the next one.
device pw://127.0.0.1:7070/disk
left=$device
kill -KILL "$process"
wait "$process" || true
fails dd "if=$left" of=/dev/null bs=4k count=1 iflag=direct
pagewire info "$left" | grep -q 'which is gone'
device pw://127.0.0.1:7070/disk "$left"
[ "$device" = "$left" ]
dd "if=$device" bs=1M count=8 | cmp - disk
kill -TERM "$process"
ends "$process"

# What cannot be is said in one line.
head -c 1000 /dev/urandom >odd
fails pagewire mount file:odd --via nbd 2>said
grep -q '512 bytes' said
fails pagewire mount file:odd /dev/null --via nbd 2>said
grep -q 'no NBD device' said
fails pagewire mount file:odd 2>said
grep -q 'name the PATH' said
fails pagewire mount pw://127.0.0.1:7070 --via nbd 2>said
[ "$(wc -l <said)" = 1 ]
