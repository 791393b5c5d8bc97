//! System calls run inside another process, by libcompel.
//!
//! What always holds:
//! - While an [`InjectedProcess`] exists every thread of the process is stopped, so no thread can run through the few code
//!   bytes that libcompel overwrites for the length of a call. Registers and code are put back after each call.
//! - Dropping it lets the process go on where it was, in the state it was in: a process that had been stopped by a signal
//!   stays stopped. If the caller dies, the kernel lets the process go on.
//!
//! It fails when the process is gone, is traced by somebody else, or may not be traced by the caller (CAP_SYS_PTRACE).
//! A process that is stopped in an uninterruptible wait is waited for without a limit.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{c_char, c_int, c_uint},
    fs, io,
    marker::PhantomData,
    ptr::NonNull,
    sync::Once,
};

use crate::bindings;

/// Bytes of one message of libcompel that are kept.
const MESSAGE_LIMIT: usize = 512;

/// Why a system call could not be run in a process.
#[derive(Debug, thiserror::Error)]
pub enum CompelError {
    /// A process cannot trace itself.
    #[error("system calls cannot be injected into the calling process itself")]
    OwnProcess,
    /// Its threads cannot be listed.
    #[error("cannot list the threads of process {pid}")]
    Threads {
        /// The process.
        pid: u32,
        /// What `/proc` said.
        #[source]
        source: io::Error,
    },
    /// A thread cannot be stopped.
    #[error("cannot stop thread {thread} of process {pid}: {reason}")]
    Stop {
        /// The process.
        pid: u32,
        /// The thread.
        thread: u32,
        /// What libcompel said.
        reason: String,
    },
    /// No place for the call was found in the process.
    #[error("cannot prepare process {pid} for a system call: {reason}")]
    Prepare {
        /// The process.
        pid: u32,
        /// What libcompel said.
        reason: String,
    },
    /// The call was not carried out.
    #[error("cannot run system call {number} in process {pid}: {reason}")]
    Syscall {
        /// The process.
        pid: u32,
        /// Its number on this architecture.
        number: i64,
        /// What libcompel said.
        reason: String,
    },
    /// The process may not have been put back as it was.
    #[error("cannot let process {pid} go on: {reason}")]
    Release {
        /// The process.
        pid: u32,
        /// What libcompel said.
        reason: String,
    },
}

/// A process all of whose threads are stopped, ready to run system calls for us.
///
/// Not `Send`: the kernel accepts ptrace requests only from the thread that stopped the process.
#[derive(Debug)]
pub struct InjectedProcess {
    pid: u32,
    /// Every stopped thread with the state it was in.
    threads: BTreeMap<u32, c_int>,
    control: Option<NonNull<bindings::parasite_ctl>>,
    _one_thread: PhantomData<*const ()>,
}

impl InjectedProcess {
    /// Stops every thread of process `pid`.
    ///
    /// # Errors
    /// When the process is gone or may not be traced. It then goes on as if nothing had happened.
    pub fn stop(pid: u32) -> Result<Self, CompelError> {
        if pid == std::process::id() {
            return Err(CompelError::OwnProcess);
        }
        collect_messages();
        let mut process = Self { pid, threads: BTreeMap::new(), control: None, _one_thread: PhantomData };
        // The leader first: a process whose leader cannot be traced is left alone.
        process.stop_thread(pid)?;
        // Threads that are still running can start others, so until a whole round finds nothing new.
        loop {
            let running: Vec<u32> =
                process.list_threads()?.into_iter().filter(|id| !process.threads.contains_key(id)).collect();
            if running.is_empty() {
                break;
            }
            for thread in running {
                match process.stop_thread(thread) {
                    // It ended before it could be stopped.
                    Err(_) if !process.list_threads()?.contains(&thread) => {}
                    other => other?,
                }
            }
        }
        // SAFETY: the leader is stopped and traced by this thread, which is what compel_prepare demands.
        let control = unsafe { bindings::compel_prepare(pid as c_int) };
        match NonNull::new(control) {
            Some(control) => process.control = Some(control),
            None => return Err(CompelError::Prepare { pid, reason: last_message() }),
        }
        Ok(process)
    }

    /// Runs one system call in the process's leading thread and returns what the kernel returned there: negative values
    /// from -4095 are error numbers. Pointers among the arguments are addresses in that process.
    ///
    /// # Errors
    /// When the call could not be carried out, which is not the same as a call that fails.
    pub fn syscall(&mut self, number: i64, arguments: [u64; 6]) -> Result<i64, CompelError> {
        let failed = |reason| CompelError::Syscall { pid: self.pid, number, reason };
        let control = self.control.ok_or_else(|| failed("the process was released".to_owned()))?;
        let number_in_c = c_int::try_from(number).map_err(|_| failed("no such system call".to_owned()))?;
        let [a, b, c, d, e, f] = arguments;
        let mut result = 0;
        // SAFETY: `control` came from compel_prepare, was not cured yet, and every thread of the process is still stopped
        // by this thread. `result` is a live local.
        let outcome =
            unsafe { bindings::compel_syscall(control.as_ptr(), number_in_c, &mut result, a, b, c, d, e, f) };
        if outcome < 0 { Err(failed(last_message())) } else { Ok(result) }
    }

    /// Lets the process go on.
    ///
    /// # Errors
    /// When it could not be put back as it was; it goes on nevertheless, if it still exists.
    pub fn resume(mut self) -> Result<(), CompelError> {
        self.release()
    }

    fn stop_thread(&mut self, thread: u32) -> Result<(), CompelError> {
        // SAFETY: takes a thread id; attaches this thread as its tracer.
        let state = unsafe { bindings::compel_stop_task(thread as c_int) };
        if state < 0 {
            return Err(CompelError::Stop { pid: self.pid, thread, reason: last_message() });
        }
        self.threads.insert(thread, state);
        Ok(())
    }

    fn list_threads(&self) -> Result<Vec<u32>, CompelError> {
        let failed = |source| CompelError::Threads { pid: self.pid, source };
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid)).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            threads.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(threads)
    }

    fn release(&mut self) -> Result<(), CompelError> {
        let mut outcome = Ok(());
        if let Some(control) = self.control.take() {
            // SAFETY: `control` came from compel_prepare and is cured once, here; compel_cure frees it.
            if unsafe { bindings::compel_cure(control.as_ptr()) } < 0 {
                outcome = Err(CompelError::Release { pid: self.pid, reason: last_message() });
            }
        }
        for (thread, state) in std::mem::take(&mut self.threads) {
            // SAFETY: this thread stopped `thread` and has not resumed it since.
            if unsafe { bindings::compel_resume_task(thread as c_int, state, state) } < 0 && outcome.is_ok() {
                outcome = Err(CompelError::Release { pid: self.pid, reason: last_message() });
            }
        }
        outcome
    }
}

impl Drop for InjectedProcess {
    fn drop(&mut self) {
        // An error here means that the process is gone, or goes on with a call's traces; nobody is left to be told.
        let _ = self.release();
    }
}

thread_local! {
    static LAST_MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The last error libcompel logged in this thread.
fn last_message() -> String {
    let message = LAST_MESSAGE.with(RefCell::take);
    if message.is_empty() { io::Error::last_os_error().to_string() } else { message }
}

/// Has libcompel's error messages kept for [`last_message`] instead of dropped.
fn collect_messages() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: installs a function that lives as long as the program, before any other use of libcompel here.
        unsafe { bindings::compel_log_init(Some(keep_message), bindings::COMPEL_LOG_ERROR) };
    });
    LAST_MESSAGE.with(RefCell::take);
}

unsafe extern "C" fn keep_message(
    level: c_uint,
    format: *const c_char,
    arguments: *mut bindings::__va_list_tag,
) {
    if level > bindings::COMPEL_LOG_ERROR {
        return;
    }
    let mut buffer = [0u8; MESSAGE_LIMIT];
    // SAFETY: libcompel hands over a valid format with its arguments; the buffer's size is given, so it is not overrun.
    let length =
        unsafe { bindings::vsnprintf(buffer.as_mut_ptr().cast(), buffer.len() as _, format, arguments) };
    let length = usize::try_from(length).unwrap_or(0).min(buffer.len() - 1);
    let text = String::from_utf8_lossy(&buffer[..length]);
    // A message outside any thread's life is dropped.
    let _ = LAST_MESSAGE.try_with(|last| text.trim().clone_into(&mut last.borrow_mut()));
}
