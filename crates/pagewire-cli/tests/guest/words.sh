# What scenarios are made of.

never() {
  echo "never: $*"
  for file in *.err; do echo "-- $file"; cat "$file"; done
  exit 1
}

eventually() { # eventually COMMAND…: waits until it succeeds
  tries=0
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 200 ] || never "$@"
    sleep 0.1
  done
}

fails() { # fails COMMAND…: it must
  if "$@"; then
    echo "it should fail: $*"
    exit 1
  fi
}

serve() { # serve PORT OFFER…: starts a server, which is $server from then on
  port=$1
  shift
  : >server.out
  pagewire serve "$@" --listen "pw://127.0.0.1:$port" >server.out 2>>server.err &
  server=$!
  eventually grep -q listening server.out
}

device() { # device REGION OPTION…: makes a device, which is $device from then on, of the process $process
  pagewire -v mount "$@" --via nbd >device.out 2>>device.err &
  process=$!
  eventually grep -q mounted device.out
  device=$(sed 's/mounted //' device.out)
}

ends() { # ends PROCESS: it has been told to, and does so with status 0
  wait "$1" || never "process $1 ends well: status $?"
}

is_gone() { # is_gone PROCESS
  ! kill -0 "$1"
}

is_down() { # is_down DEVICE
  [ ! -e "/sys/block/${1#/dev/}/pid" ]
}

random() { # random KIBIBYTES FILE: writes a file that nobody has seen
  dd if=/dev/urandom "of=$2" bs=1k "count=$1" 2>/dev/null
}

forget() { # has the kernel drop what it has cached
  echo 3 >/proc/sys/vm/drop_caches
}

sums() { # sums FOLDER: the sums of all files in it
  (cd "$1" && find . -type f | sort | xargs sha256sum)
}

tree() { # tree FOLDER: writes a tree of files into it
  mkdir -p "$1/a/b" "$1/c"
  dd if=/bin/busybox "of=$1/a/busybox" bs=64k count=8 2>/dev/null
  for n in 1 2 3 4 5 6 7 8; do
    head -c $((n * 7000)) /dev/urandom >"$1/a/b/file$n"
    echo "line $n" >"$1/c/short$n"
  done
}
