#!/bin/busybox sh
# The first process of the guest: runs one scenario after the other, and tells the host how each ends.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/root
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/shm /dev/pts /tmp /run /mnt /root /out
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
ip link set lo up
hostname guest

# Which of the ports that the host has given it is the one for what it is told.
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = results ] && results=/dev/${port##*/}
done
exec 3>"$results"

while read -r name parameters; do
  # Parameters are words.
  # shellcheck disable=SC2086
  insmod "/modules/$name.ko" $parameters || echo "cannot load $name"
done </modules/order
echo ready >&3

for scenario in /scenarios/*; do
  name=${scenario##*/*.}
  echo "begin $name" >&3
  echo "== $name, at $(cut -d' ' -f1 /proc/uptime) s"
  : >"/out/$name"
  (
    mkdir -p "/tmp/$name" && cd "/tmp/$name" || exit 127
    # In a session of its own, and with limits of its own.
    exec setsid timeout -s KILL "$(cat /limit)" sh -eu "$scenario"
  ) </dev/null >"/out/$name" 2>&1 &
  running=$!
  tail -f "/out/$name" &
  telling=$!
  wait "$running"
  status=$?
  kill "$telling"
  # Nothing of it is to be in the way of the next one.
  killall -q -9 pagewire nbd-client sleep
  awk '$2 ~ "^/(mnt|tmp/.)" { print $2 }' /proc/mounts | while read -r place; do umount -l "$place"; done
  echo "end $name $status $(wc -c <"/out/$name")" >&3
  cat "/out/$name" >&3
done
echo over >&3
exec 3>&-
poweroff -f
