# The study has cells of devices where the kernel has them.
mkdir -p /tmp
only=nbd-direct.in-order.rtt0.,nbd-managed.write1.rtt0.
pagewire study --out study --methods nbd --only "$only" --size 1MiB --rounds 1 --cap 30s --tolerance 1000000 >study.out
grep -q 'raw data: study/raw.jsonl' study.out || never 'the study says where its data are'
measured=0
for cell in nbd-direct.in-order nbd-managed.write1; do
  line=$(grep "\"id\":\"$cell" study/raw.jsonl) || never "$cell is there"
  # How much is done in time depends on the machine.
  echo "$line" | grep -Eq '"outcome":"(measured|capped)"' || never "$line"
  echo "$line" | grep -q '"moved_bytes":[1-9]' || never "$line"
  measured=$((measured + 1))
done
echo "$measured measured"
is_down /dev/nbd0 || never 'no device is left'
! grep -q pagewire-study /proc/self/mountinfo || never 'no mount is left'
