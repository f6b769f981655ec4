random 8192 disk
serve 7070 disk=file:disk
device pw://127.0.0.1:7070/disk --writable
[ "$device" = /dev/nbd0 ]
"$test_program" --ignored --exact inside::a_device_is_mapped
kill -TERM "$process"
ends "$process"
