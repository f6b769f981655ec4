random 8192 disk
serve 7070 disk=file:disk
device pw://127.0.0.1:7070/disk --direct --writable --patience 2s
dd "if=$device" bs=64k count=4 iflag=direct | cmp - disk -n 262144
kill -KILL "$server"
wait "$server" || true
before=$(cut -d. -f1 /proc/uptime)
fails dd "if=$device" of=/dev/null bs=4k skip=1000 count=1 iflag=direct
fails dd if=/dev/zero "of=$device" bs=4k seek=100 count=1 conv=notrunc,fsync
after=$(cut -d. -f1 /proc/uptime)
# An error after each patience, and not what the kernel itself would wait for.
[ $((after - before)) -lt 25 ] || never "within the patience: $((after - before)) s"
# A server that is there again is used again.
serve 7070 disk=file:disk
eventually dd "if=$device" of=/dev/null bs=4k skip=1000 count=1 iflag=direct
eventually dd if=/dev/zero "of=$device" bs=4k seek=100 count=1 conv=notrunc,fsync
# The server puts it in its place after the flush, from its journal.
head -c 4096 /dev/zero >zeroes
is_in_place() { dd if=disk of=found bs=4k skip=100 count=1 && cmp -s found zeroes; }
eventually is_in_place
kill -TERM "$process"
ends "$process"
