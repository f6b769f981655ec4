# The module is there, and root may use it; a device is what is recommended, and can be made.
pagewire doctor --for disk >said || exit 1
cat said
grep -q '^  ok  *NBD devices' said || exit 1
grep -q '^  yes  *pagewire mount --via nbd, a block device' said || exit 1
grep -q '^Use NBD, managed' said || exit 1
# Nothing was made by that.
test ! -e /sys/block/nbd0/pid || exit 1

# An ordinary user may not, and is told so.
mkdir -p /etc
echo 'alice:x:1000:1000::/:/bin/sh' >/etc/passwd
su alice -c 'pagewire doctor --json' >json || exit 1
grep -q '"uid":1000,"user":"alice"' json || exit 1
grep -q '"use":"device",[^}]*"works":"no","why":"making a block device needs CAP_SYS_ADMIN"' json || exit 1
