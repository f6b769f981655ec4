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
dd if=disk bs=4k skip=100 count=1 | cmp - /dev/zero -n 4096
kill -TERM "$process"
ends "$process"
