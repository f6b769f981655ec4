//! Scripts for libnbd's Python binding: each command and each error, as libnbd has them, with its own checks
//! switched off where they would keep a request from being sent.

use crate::support::{PYTHON, Served, has, noise, succeed};

const BEGIN: &str = "
import nbd, errno, sys
def fails(error, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as e:
        assert e.errnum == error, (e.errnum, e.string, error)
    else:
        raise AssertionError('%r succeeds' % (args,))
def connect(**options):
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.add_meta_context('qemu:dirty-bitmap:unflushed')
    h.set_strict_mode(0)
    for name, value in options.items():
        getattr(h, 'set_' + name)(value)
    h.connect_uri(sys.argv[1])
    return h
";

/// Runs a script on each address of a server of a file of 2 MiB.
fn script(options: &[&str], script: &str) {
    if !has("libnbd") {
        return;
    }
    let served = Served::new(&noise(2 << 20, 1), options);
    let file = served.text("script.py");
    std::fs::write(&file, format!("{BEGIN}{script}")).unwrap();
    for uri in &served.uris {
        succeed(PYTHON, &[&file, uri]);
    }
}

#[test]
fn each_command_does_what_it_is_for() {
    script(
        &[],
        "
for simple in (True, False):
    h = connect(request_structured_replies=not simple)
    assert h.get_structured_replies_negotiated() == (not simple)
    size = h.get_size()
    assert size == 2 << 20
    h.pwrite(b'abc' * 1000, 5)
    assert h.pread(3000, 5) == b'abc' * 1000
    h.pwrite(b'z' * 512, 4096, nbd.CMD_FLAG_FUA)
    h.zero(8192, 65536)
    assert h.pread(8192, 65536) == bytearray(8192)
    h.zero(8192, 65536, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    h.zero(8192, 131072, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(8192, 131072) == bytearray(8192)
    h.trim(65536, 262144)
    h.trim(65536, 262144, nbd.CMD_FLAG_FUA)
    h.cache(1 << 20, 0)
    h.flush()
    # Through the end.
    h.pwrite(b'end', size - 3)
    assert h.pread(3, size - 3) == b'end'
    h.shutdown()
h = connect()
assert h.pread(3000, 5) == b'abc' * 1000
chunks = []
def chunk(data, offset, status, error):
    chunks.append((offset, status, len(data)))
h.zero(131072, 1 << 20)
h.pread_structured(262144, 1 << 20, chunk)
assert any(status == nbd.READ_HOLE for _, status, _ in chunks), chunks
chunks.clear()
h.pread_structured(262144, 1 << 20, chunk, nbd.CMD_FLAG_DF)
assert [status for _, status, _ in chunks] == [nbd.READ_DATA], chunks
",
    );
}

#[test]
fn each_error_is_that_of_the_specification() {
    script(
        &[],
        "
for simple in (True, False):
    h = connect(request_structured_replies=not simple)
    size = h.get_size()
    fails(errno.EINVAL, h.pread, 512, size)
    fails(errno.EINVAL, h.pread, 512, size - 1)
    fails(errno.EINVAL, h.pread, 1, 2 ** 63 - 1)
    fails(errno.ENOSPC, h.pwrite, b'x' * 512, size - 511)
    fails(errno.ENOSPC, h.zero, 512, size - 511)
    fails(errno.EINVAL, h.trim, 512, size - 511)
    fails(errno.EINVAL, h.cache, 512, size - 511)
    fails(errno.EINVAL, h.pwrite, b'x', 0, nbd.CMD_FLAG_DF)
    fails(errno.EINVAL, h.zero, 1, 0, nbd.CMD_FLAG_REQ_ONE)
    fails(errno.ENOTSUP, h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    # What has no bytes is no error, and the connection goes on.
    h.pwrite(b'', 0)
    h.trim(0, 0)
    h.zero(0, 0)
    assert h.pread(1, 0) is not None
    h.shutdown()
h = connect()
fails(errno.EOVERFLOW, h.pread, 33 << 20, 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.block_status, 512, size, lambda *args: 0)
h.shutdown()
",
    );
}

#[test]
fn a_status_has_all_contexts_and_one_extent_where_one_is_asked_for() {
    script(
        &[],
        "
h = connect()
h.flush()
h.zero(1 << 20, 0)
h.pwrite(b'x' * 4096, 8192)
found = {}
def extents(context, offset, entries, error):
    found[context] = entries
h.block_status(1 << 20, 0, extents)
assert found['base:allocation'] == [8192, 3, 4096, 0, (1 << 20) - 12288, 3], found
# Zeroes that were written are not flushed either.
assert found['qemu:dirty-bitmap:unflushed'] == [1 << 20, 1], found
h.flush()
h.block_status(1 << 20, 0, extents)
assert found['qemu:dirty-bitmap:unflushed'] == [1 << 20, 0], found
h.block_status(1 << 20, 9000, extents, nbd.CMD_FLAG_REQ_ONE)
assert found['base:allocation'] == [12288 - 9000, 0], found
h.shutdown()
",
    );
}

#[test]
fn the_handshake_is_haggled_over_as_the_specification_has_it() {
    script(
        &[],
        "
h = nbd.NBD()
h.set_opt_mode(True)
h.set_request_structured_replies(False)
h.connect_uri(sys.argv[1])
assert h.get_protocol() == 'newstyle-fixed'
names = []
assert h.opt_list(lambda name, text: names.append((name, text))) == 1
assert names[0][0] == 'disk' and 'Pagewire region' in names[0][1], names
h.set_export_name('none')
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
h.set_export_name('disk')
h.opt_info()
assert h.get_size() == 2 << 20
# Metadata contexts need structured replies.
h.add_meta_context('base:allocation')
fails(errno.ENOTSUP, h.opt_list_meta_context, lambda name: 0)
h.opt_go()
assert not h.can_meta_context('base:allocation')
assert not h.can_df()
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
contexts = []
h.set_export_name('disk')
assert h.opt_list_meta_context(contexts.append) == 2
assert contexts == ['base:allocation', 'qemu:dirty-bitmap:unflushed'], contexts
h.add_meta_context('qemu:dirty-bitmap:')
contexts.clear()
h.opt_list_meta_context(contexts.append)
assert contexts == ['qemu:dirty-bitmap:unflushed'], contexts
h.opt_abort()
",
    );
}

#[test]
fn who_may_only_read_is_told_so() {
    script(
        &["--read-only"],
        "
h = connect()
assert h.is_read_only() and not h.can_trim() and not h.can_zero()
assert h.can_flush() and h.can_multi_conn()
before = h.pread(4096, 0)
fails(errno.EPERM, h.pwrite, b'x' * 4096, 0)
fails(errno.EPERM, h.pwrite, b'x' * 4096, 0, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 0) == before
h.flush()
h.shutdown()
",
    );
}

#[test]
fn many_requests_are_under_way_on_many_connections() {
    script(
        &[],
        "
hs = [connect() for _ in range(4)]
blocks = 256
done = 0
for n in range(blocks):
    buf = nbd.Buffer.from_bytearray(bytearray([n]) * 8192)
    hs[n % 4].aio_pwrite(buf, n * 8192)
while any(h.aio_in_flight() for h in hs):
    for h in hs:
        if h.aio_in_flight():
            h.poll(10)
for h in hs:
    for _ in range(blocks // 4):
        assert h.aio_command_completed(h.aio_peek_command_completed())
        done += 1
assert done == blocks, done
hs[0].flush()
for n in range(blocks):
    assert hs[(n + 1) % 4].pread(8192, n * 8192) == bytearray([n]) * 8192, n
",
    );
}
