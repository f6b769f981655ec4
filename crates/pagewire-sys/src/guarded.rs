//! Loads that end where a page cannot be had, and not the process.
//!
//! A page of a mapped file that is behind the file's end, or that cannot be read, is a SIGBUS. A file may be cut at any time,
//! so no look beforehand helps. What helps is what the kernel does for its own copies: it is known at which instruction the
//! fault may come, and where to go on then. The instruction is `rep movsb`, which keeps how far it has come in its registers,
//! and to go on is to step over it.
//!
//! The handler of SIGBUS that this takes is put in place once, and hands on all that is not its own to the one that was there.
//! A program that puts another in place later has to do the same.

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::load;

/// Nothing is loaded.
///
/// # Safety
///
/// None.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn load(_: *const u8, _: &mut [u8]) -> usize {
    0
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::global_asm;
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;

    use libc::{c_int, c_void, siginfo_t, ucontext_t};

    // The third argument is the count; what is left of it is the result.
    global_asm!(
        ".pushsection .text.pagewire_guarded_load, \"ax\", @progbits",
        ".globl pagewire_guarded_load",
        ".hidden pagewire_guarded_load",
        ".globl pagewire_guarded_load_fault",
        ".hidden pagewire_guarded_load_fault",
        ".globl pagewire_guarded_load_end",
        ".hidden pagewire_guarded_load_end",
        "pagewire_guarded_load:",
        "mov rcx, rdx",
        "pagewire_guarded_load_fault:",
        "rep movsb",
        "pagewire_guarded_load_end:",
        "mov rax, rcx",
        "ret",
        ".popsection",
    );

    unsafe extern "C" {
        fn pagewire_guarded_load(to: *mut u8, from: *const u8, count: usize) -> usize;
        static pagewire_guarded_load_fault: u8;
        static pagewire_guarded_load_end: u8;
    }

    /// What was done about SIGBUS before; none where the handler could not be put in place.
    static BEFORE: OnceLock<Option<libc::sigaction>> = OnceLock::new();

    /// Copies bytes that others may be writing; answers how many, fewer where a page cannot be had.
    ///
    /// # Safety
    ///
    /// As many bytes as `to` has are mapped at `from`, by a mapping whose faults are SIGBUS if any; none of them is in `to`.
    pub(crate) unsafe fn load(from: *const u8, to: &mut [u8]) -> usize {
        if BEFORE.get_or_init(install).is_none() {
            return 0;
        }
        // SAFETY: it writes `to`, which is borrowed mutably, and reads what the caller promises, by an instruction
        // that is no access of the memory model; a fault in it is caught by the handler that is in place.
        let left = unsafe { pagewire_guarded_load(to.as_mut_ptr(), from, to.len()) };
        to.len() - left
    }

    fn install() -> Option<libc::sigaction> {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeroes is a valid sigaction, which the calls fill in or read. The handler touches nothing but its
        // arguments and statics.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            let done = libc::sigaction(libc::SIGBUS, &raw const action, before.as_mut_ptr());
            (done == 0).then(|| before.assume_init())
        }
    }

    extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        const RIP: usize = libc::REG_RIP as usize;
        // SAFETY: the kernel passes the interrupted thread's context, which nobody else has; of the statics only the
        // addresses are taken.
        let own = unsafe {
            let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
            let own = registers[RIP] == (&raw const pagewire_guarded_load_fault) as i64;
            if own {
                registers[RIP] = (&raw const pagewire_guarded_load_end) as i64;
            }
            own
        };
        if own {
            return;
        }
        match BEFORE.get() {
            Some(Some(before)) if ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction) => {
                let handler = before.sa_sigaction as *const ();
                // SAFETY: it is the handler that was in place for this signal, of the kind that its flags say.
                unsafe {
                    if before.sa_flags & libc::SA_SIGINFO != 0 {
                        type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
                        std::mem::transmute::<*const (), Handler>(handler)(signal, info, context);
                    } else {
                        std::mem::transmute::<*const (), extern "C" fn(c_int)>(handler)(signal);
                    }
                }
            }
            // There was none, or it is not known yet: it is as if this one were not there.
            // SAFETY: all zeroes is the default action; both calls are async-signal-safe.
            _ => unsafe {
                let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                libc::raise(signal);
            },
        }
    }
}
