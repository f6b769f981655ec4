//! The edge to the kernel: translates FUSE requests into what a [`RegionFile`](crate::access::region_file::RegionFile) does, and
//! nothing else.
//!
//! No request waits on a thread of the session: answers are sent by whoever has them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use pagewire_core::chunk::ByteRange;
use pagewire_sys::file::Allocate;

use super::Shared;
use super::entries::{Attributes, Entries, Entry, ROOT};
use super::errno::errno;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Completion, Urgency};

/// For how long the kernel may believe what it is told of names and attributes. It is told when they change, but for
/// the names in a directory.
const BELIEVE: Duration = Duration::from_secs(3600);
const BELIEVE_NAME: Duration = Duration::from_secs(1);

/// How many requests that nobody waits for may be on their way: more than there ever are, since those that somebody
/// waits for would wait behind them.
const BACKGROUND: u16 = 1024;

/// The name of the attribute that tells how a mount is doing, as JSON.
pub(super) const STATUS: &str = "user.pagewire.status";

/// A mount, for the kernel.
pub(super) struct MountedRegions(pub(super) Arc<Shared>);

impl MountedRegions {
    fn entry(&self, ino: INodeNo) -> Result<Arc<Entry>, Errno> {
        self.0.entries.by_ino(ino.0).ok_or(Errno::ENOENT)
    }

    /// The file of a number that a program has opened.
    fn file(&self, ino: INodeNo) -> Result<Arc<crate::access::region_file::RegionFile>, Errno> {
        self.entry(ino)?.file().ok_or(Errno::EBADF)
    }

    /// Does what may take a while on a thread of its own.
    fn aside(&self, work: impl FnOnce(&Arc<Shared>) + Send + 'static) {
        let shared = self.0.clone();
        let started = std::thread::Builder::new().name("pw-fuse-aside".into()).spawn(move || work(&shared));
        if let Err(error) = started {
            // What it was to answer is answered with an I/O error when it is dropped.
            tracing::error!(%error, "cannot start a thread");
        }
    }

    fn attr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        match &self.0.entries {
            Entries::Directory(directory) if ino.0 == ROOT => {
                Ok(attr(ROOT, 0, &directory.attributes, FileType::Directory))
            }
            _ => Ok(attr_of(&*self.entry(ino)?)),
        }
    }
}

fn attr_of(entry: &Entry) -> FileAttr {
    attr(entry.ino, entry.length(), &entry.attributes(), FileType::RegularFile)
}

fn attr(ino: u64, size: u64, attributes: &Attributes, kind: FileType) -> FileAttr {
    let Attributes { mode, uid, gid, accessed, modified, changed } = *attributes;
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: accessed,
        mtime: modified,
        ctime: changed,
        crtime: changed,
        kind,
        perm: mode,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn empty(reply: ReplyEmpty) -> Completion {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    })
}

impl Filesystem for MountedRegions {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What a kernel lacks is done without.
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for flag in wanted {
            let _ = config.add_capabilities(flag);
        }
        if self.0.options.writable && config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE).is_err() {
            tracing::warn!("this kernel has no writeback cache for FUSE; each write is a request of its own");
        }
        self.0.passthrough.negotiate(&self.0.options, config);
        let _ = config.set_max_background(BACKGROUND);
        let _ = config.set_congestion_threshold(BACKGROUND);
        let _ = config.set_max_write(super::REQUEST);
        let _ = config.set_max_readahead(super::REQUEST);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Entries::Directory(directory) = &self.0.entries else { return reply.error(Errno::ENOTDIR) };
        if parent.0 != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        if let Some(entry) = directory.lookup(name) {
            return reply.entry(&BELIEVE_NAME, &attr_of(&entry), Generation(0));
        }
        let name = name.to_owned();
        self.aside(move |shared| {
            let Entries::Directory(directory) = &shared.entries else { return };
            match directory.refresh().map(|()| directory.lookup(&name)) {
                Ok(Some(entry)) => reply.entry(&BELIEVE_NAME, &attr_of(&entry), Generation(0)),
                Ok(None) => reply.error(Errno::ENOENT),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Ok(attr) => reply.attr(&BELIEVE, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let entry = match self.entry(ino) {
            Ok(entry) => entry,
            Err(error) => return reply.error(error),
        };
        let time = |time: TimeOrNow| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        };
        entry.change_attributes(|attributes| {
            attributes.mode = mode.map_or(attributes.mode, |mode| (mode & 0o7777) as u16);
            attributes.uid = uid.unwrap_or(attributes.uid);
            attributes.gid = gid.unwrap_or(attributes.gid);
            attributes.accessed = atime.map_or(attributes.accessed, time);
            attributes.modified = mtime.map_or(attributes.modified, time);
            attributes.changed = ctime.unwrap_or_else(SystemTime::now);
        });
        let Some(size) = size else { return reply.attr(&BELIEVE, &attr_of(&entry)) };
        // A path can be cut without being opened.
        self.aside(move |shared| match shared.open(&entry) {
            Ok(file) => {
                let done: Completion = Box::new(move |result| match result {
                    Ok(()) => reply.attr(&BELIEVE, &attr_of(&entry)),
                    Err(error) => reply.error(errno(&error)),
                });
                file.set_length(size, done);
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let entry = match self.entry(ino) {
            Ok(entry) => entry,
            Err(error) => return reply.error(error),
        };
        let answer = move |shared: &Arc<Shared>| {
            let opened = shared.open(&entry).and_then(|file| match flags.acc_mode() {
                OpenAccMode::O_RDONLY => Ok(file),
                _ if file.is_writable() => Ok(file),
                _ => Err(Error::new(ErrorKind::Denied, "the file is mounted for reading")),
            });
            match opened {
                Ok(_) if shared.options.direct => {
                    let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                    reply.opened(FileHandle(0), flags);
                }
                Ok(file) => {
                    let register = |image: BorrowedFd<'_>| reply.open_backing(image);
                    match entry.opens.open(|| shared.passthrough.backing(&file, register)) {
                        Some(backing) => {
                            reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &backing);
                        }
                        None => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
                    }
                }
                Err(error) => {
                    tracing::warn!(region = entry.region, %error, "a file cannot be opened");
                    reply.error(errno(&error));
                }
            }
        };
        match self.0.entries.by_ino(ino.0).is_some_and(|entry| entry.file().is_some()) {
            true => answer(&self.0),
            false => self.aside(answer),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        super::schedule_once();
        let file = match self.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        let Some(range) = ByteRange::checked(offset, size.into()) else { return reply.error(Errno::EINVAL) };
        let urgency =
            if self.0.warmers.contains(request.pid()) { Urgency::Background } else { Urgency::Demand };
        let done = Box::new(move |bytes: Result<&[u8]>| match bytes {
            Ok(bytes) => reply.data(bytes),
            Err(error) => {
                tracing::warn!(%error, "a read fails");
                reply.error(errno(&error));
            }
        });
        file.read(range, urgency, done);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = match self.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        // Never more than the buffer of a request has.
        let length = data.len() as u32;
        let done: Completion = Box::new(move |result| match result {
            Ok(()) => reply.written(length),
            Err(error) => {
                tracing::warn!(%error, "a write fails");
                reply.error(errno(&error));
            }
        });
        file.write(offset, data, done);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is to be done at a close; the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(entry) = self.entry(ino) {
            entry.opens.release();
        }
        reply.ok();
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if self.0.write_backs.contains(request.pid()) {
            // The kernel has written back; that is all that was wanted.
            return reply.ok();
        }
        let file = match self.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        let done = empty(reply);
        file.flush(Box::new(move |result| {
            if let Err(error) = &result {
                tracing::error!(%error, "a flush fails");
            }
            done(result.map(drop));
        }));
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let file = match self.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        let Some(range) = ByteRange::checked(offset, length) else { return reply.error(Errno::EFBIG) };
        let mode = Allocate::from_mode(mode);
        let done = empty(reply);
        match mode {
            Some(Allocate { zero, keep_size }) => {
                let grow: Completion = if keep_size {
                    done
                } else {
                    // Never shorter: what the kernel writes back meanwhile may reach farther.
                    let file = file.clone();
                    Box::new(move |result| done(result.and_then(|()| file.grow(range.end))))
                };
                if zero { file.zero(range, grow) } else { grow(Ok(())) }
            }
            None => done(Err(Error::new(ErrorKind::Unsupported, "this kind of fallocate"))),
        }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        if self.0.options.writable {
            // The kernel asks without writing back: what is dirty in its cache, and behind the end as far as this
            // mount knows it, would be passed over as a hole. It is told to take everything for data.
            return reply.error(Errno::ENOSYS);
        }
        let file = match self.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        let (Ok(offset), Some(data)) = (u64::try_from(offset), pagewire_sys::file::seeks_data(whence)) else {
            return reply.error(Errno::EINVAL);
        };
        match file.seek(offset, data) {
            Some(found) => reply.offset(found as i64),
            None => reply.error(Errno::ENXIO),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino.0 != ROOT || !matches!(self.0.entries, Entries::Directory(_)) {
            return reply.error(Errno::ENOTDIR);
        }
        self.aside(move |shared| {
            let Entries::Directory(directory) = &shared.entries else { return };
            if offset == 0
                && let Err(error) = directory.refresh()
            {
                return reply.error(errno(&error));
            }
            let dots = [(".".into(), ROOT, FileType::Directory), ("..".into(), ROOT, FileType::Directory)];
            let files = directory.names().into_iter().map(|(name, ino)| (name, ino, FileType::RegularFile));
            for (index, (name, ino, kind)) in dots.into_iter().chain(files).enumerate().skip(offset as usize)
            {
                if reply.add(INodeNo(ino), index as u64 + 1, kind, &name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let files = self.0.entries.opened();
        let (capacity, length) = files.iter().fold((0, 0), |(capacity, length), (_, file)| {
            (capacity + file.capacity(), length + file.length())
        });
        let free = capacity.saturating_sub(length) / 4096;
        reply.statfs(capacity.div_ceil(4096), free, free, files.len() as u64, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if name != STATUS {
            return reply.error(Errno::ENODATA);
        }
        let status = match self.entry(ino) {
            Ok(entry) => self.0.status(&entry).into_bytes(),
            Err(error) => return reply.error(error),
        };
        match size as usize {
            0 => reply.size(status.len() as u32),
            room if room < status.len() => reply.error(Errno::ERANGE),
            _ => reply.data(&status),
        }
    }

    fn listxattr(&self, _: &Request, _: INodeNo, size: u32, reply: ReplyXattr) {
        // Who copies a file is not to copy the status of the mount with it.
        if size == 0 { reply.size(0) } else { reply.data(&[]) }
    }
}
