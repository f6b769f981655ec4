use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use pagewire_sys::event::{EventFd, PollItem, poll};
use pagewire_sys::net::{NetNamespace, Tun, VNET_HEADER_LEN, configure, enter_namespace, loopback_up};
use pagewire_sys::socket::{receive_exact, send_all_vectored, tcp_info};

use crate::support::{OnDrop, eventually, skipped};

const NAME: &str = "link0";

fn host(address: [u8; 4]) -> (NetNamespace, Tun) {
    let namespace = NetNamespace::create().expect("network namespace, as root");
    let tun = namespace
        .run(|| {
            let tun = Tun::create(NAME, true)?;
            configure(NAME, Ipv4Addr::from(address), 24, 9000, 20_000)?;
            loopback_up()?;
            Ok::<_, std::io::Error>(tun)
        })
        .unwrap()
        .unwrap();
    (namespace, tun)
}

/// Carries frames until the stop is signalled; returns the longest.
fn carry(from: &Tun, to: &Tun, stop: &EventFd) -> usize {
    let mut frame = vec![0; VNET_HEADER_LEN + (64 << 10)];
    let mut longest = 0;
    loop {
        let mut items = [PollItem::readable(from.as_fd()), PollItem::readable(stop.as_fd())];
        poll(&mut items, None).unwrap();
        if items[1].is_ready() {
            return longest;
        }
        let len = from.read(&mut frame).unwrap();
        longest = longest.max(len);
        assert_eq!(to.write(&frame[..len]).unwrap(), len);
    }
}

#[test]
fn two_namespaces_talk_over_a_carried_link() {
    if skipped("netns") {
        return;
    }
    let (namespace_a, tun_a) = host([10, 77, 0, 1]);
    let (namespace_b, tun_b) = host([10, 77, 0, 2]);
    let stop = EventFd::new().unwrap();
    let bytes: Vec<u8> = (0..4u32 << 20).map(|byte| (byte % 255) as u8).collect();
    let longest = std::thread::scope(|scope| {
        let stopped = OnDrop(|| stop.signal().unwrap());
        let there = scope.spawn(|| carry(&tun_a, &tun_b, &stop));
        let back = scope.spawn(|| carry(&tun_b, &tun_a, &stop));
        let listener = namespace_b.run(|| TcpListener::bind("10.77.0.2:0")).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let wait = Duration::from_secs(5);
        let client = namespace_a.run(|| TcpStream::connect_timeout(&address, wait)).unwrap().unwrap();
        let (server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), Ipv4Addr::new(10, 77, 0, 1));
        let sender = scope.spawn({
            let (client, bytes) = (client, &bytes);
            move || {
                send_all_vectored(client.as_fd(), &[bytes], false).unwrap();
                tcp_info(client.as_fd()).unwrap()
            }
        });
        let mut received = vec![0; bytes.len()];
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        receive_exact(server.as_fd(), &mut received).unwrap();
        assert!(received == bytes);
        assert!(sender.join().unwrap().rtt > Duration::ZERO);
        drop(stopped);
        back.join().unwrap();
        there.join().unwrap()
    });
    // Segments larger than the MTU travelled whole.
    assert!(longest > 9100, "the longest frame has {longest} bytes");
    let devices = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert!(namespace_a.run(devices).unwrap().contains(NAME));
    assert!(!devices().contains(NAME), "the devices of this thread's namespace:\n{}", devices());
}

#[test]
fn a_namespace_is_apart_and_its_loopback_works() {
    if skipped("netns") {
        return;
    }
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let namespace = NetNamespace::create().unwrap();
    let outside = own();
    let inside = namespace.run(own).unwrap();
    assert_ne!(outside, inside);
    assert_eq!(own(), outside, "the calling thread stays");
    namespace
        .run(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            assert!(TcpStream::connect(listener.local_addr().unwrap()).is_err(), "loopback is down");
            loopback_up().unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        })
        .unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            enter_namespace(namespace.as_fd()).unwrap();
            assert_eq!(own(), inside);
        });
    });
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(enter_namespace(reader.as_fd()).is_err());
}

#[test]
fn wrong_devices_are_errors() {
    if skipped("netns") {
        return;
    }
    let namespace = NetNamespace::create().unwrap();
    namespace
        .run(|| {
            for name in ["", "a-name-of-16-byte", "a/b", "a\0b"] {
                assert!(Tun::create(name, true).is_err(), "{name:?}");
            }
            let address = Ipv4Addr::new(10, 0, 0, 1);
            assert!(configure("none0", address, 24, 1500, 100).is_err());
            let tun = Tun::create(NAME, false).unwrap();
            assert!(Tun::create(NAME, false).is_err(), "the name is taken");
            assert!(configure(NAME, address, 33, 1500, 100).is_err());
            assert!(tun.write(&[0x45; 20]).is_err(), "the device is down");
            for prefix in [0, 32] {
                configure(NAME, address, prefix, 1500, 100).unwrap();
            }
            assert!(std::net::UdpSocket::bind((address, 0)).is_ok());
            drop(tun);
            assert!(
                eventually(|| configure(NAME, address, 24, 1500, 100).is_err()),
                "it goes with its descriptor"
            );
        })
        .unwrap();
}

#[test]
fn a_panic_inside_goes_on_outside() {
    if skipped("netns") {
        return;
    }
    let namespace = NetNamespace::create().unwrap();
    let caught = std::panic::catch_unwind(|| namespace.run(|| -> u8 { panic!("on purpose") }));
    assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "on purpose");
}
