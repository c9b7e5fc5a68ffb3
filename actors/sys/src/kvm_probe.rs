//! Tells whether KVM on this host really runs a 64-bit guest, which `/dev/kvm` being there does not say.
//!
//! Hosts exist (nested, without the hardware's help) whose KVM creates VMs and runs a little code, but emulates it
//! instruction by instruction: no stock kernel boots there. The probe is a guest of a few instructions in long mode:
//! `fxsave` and `lock cmpxchg16b`, which such emulations lack and every kernel uses, then a million turns of a loop, which
//! take a millisecond on hardware and more than a second there.
#![expect(unsafe_code, reason = "guest memory is mapped and shared with the kernel; a stuck vCPU is woken by a signal")]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// What the guest may cost. Processor time, not time on the wall: a busy host is not a broken one.
const COST_MAX: Duration = Duration::from_millis(50);
/// How long the guest may take on the wall before it is stopped.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a stopped guest may take to notice.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// Turns of the loop.
const TURNS: u32 = 1_000_000;

/// Why KVM is not to be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("there is no /dev/kvm")]
    NoDevice,
    #[error("this user may not open /dev/kvm")]
    Denied,
    #[error("KVM failed to {step}: {errno}")]
    Setup { step: &'static str, errno: Errno },
    /// The guest fell over an instruction that every processor has.
    #[error("KVM ended a simple 64-bit guest with {0}")]
    Ended(String),
    #[error("KVM computed a wrong result for {0}")]
    Wrong(&'static str),
    #[error("KVM runs a 64-bit guest too slowly ({} ms for what takes 1)", .0.as_millis())]
    TooSlow(Duration),
    /// The host was too busy to tell.
    #[error("KVM did not run a small guest within {} ms", PATIENCE.as_millis())]
    TimedOut,
}

impl Unusable {
    /// Whether another try during this boot of the host would say the same.
    #[must_use]
    pub const fn is_lasting(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Wrong(_) | Self::TooSlow(_))
    }
}

/// Runs the probe and says what it cost. Takes a millisecond where KVM is sound, at most a few seconds where it hangs.
///
/// # Errors
/// See [`Unusable`].
pub fn probe() -> Result<Duration, Unusable> {
    let steps = vec![Step::Fxsave, Step::CompareExchange, Step::Loop(TURNS)];
    let cost = run_within(steps, PATIENCE)?;
    if cost > COST_MAX { Err(Unusable::TooSlow(cost)) } else { Ok(cost) }
}

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Fxsave,
    CompareExchange,
    Loop(u32),
}

/// The layout of guest-physical memory, which is mapped one to one.
const MEMORY: usize = 0x8000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x4000;
/// 512 bytes, aligned to 16, for `fxsave`.
const FXSAVE: u64 = 0x5000;
/// 16 bytes, aligned to 16, for `cmpxchg16b`.
const PAIR: u64 = 0x6000;
/// Where Intel's VMX keeps three pages for real mode, out of the way of the memory; as every VMM has it.
const TSS: usize = 0xfffb_d000;

/// The port that the guest reports to, and what it reports.
const PORT: u8 = 0xf4;
const DONE: u8 = 0x5a;
/// What [`PAIR`] holds, low half first, and what is to be put in its place.
const OLD: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
const NEW: [u64; 2] = [0x0f1e_2d3c_4b5a_6978, 0x8796_a5b4_c3d2_e1f0];
/// MXCSR and x87 control word after a reset (Intel SDM volume 3, table 10-1), and where `fxsave` puts MXCSR.
const MXCSR_AT: u64 = FXSAVE + 24;
const MXCSR: u32 = 0x1f80;

/// The guest's instructions. Registers at entry: rdi = [`FXSAVE`], rsi = [`PAIR`], rdx:rax = [`OLD`], r9:r8 = [`NEW`].
fn body(steps: &[Step]) -> Vec<u8> {
    let mut code = Vec::new();
    for step in steps {
        match step {
            // fxsave [rdi]
            Step::Fxsave => code.extend([0x0f, 0xae, 0x07]),
            // mov rbx, r8; mov rcx, r9; lock cmpxchg16b [rsi]
            Step::CompareExchange => {
                code.extend([0x4c, 0x89, 0xc3, 0x4c, 0x89, 0xc9, 0xf0, 0x48, 0x0f, 0xc7, 0x0e]);
            }
            // mov ecx, turns; again: dec ecx; jnz again
            Step::Loop(turns) => {
                code.push(0xb9);
                code.extend(turns.to_le_bytes());
                code.extend([0xff, 0xc9, 0x75, 0xfc]);
            }
        }
    }
    code
}

/// mov al, DONE; out PORT, al; hlt
const END: [u8; 5] = [0xb0, DONE, 0xe6, PORT, 0xf4];

/// Runs the steps on a thread of their own, and says what processor time they took.
fn run_within(steps: Vec<Step>, patience: Duration) -> Result<Duration, Unusable> {
    let (sender, receiver) = channel();
    ignore_stop_signal().map_err(|errno| Unusable::Setup { step: "install a signal handler", errno })?;
    let thread = std::thread::Builder::new()
        .name("kvm-probe".to_owned())
        // Nobody receives any more: then the answer came too late to matter.
        .spawn(move || sender.send(run(&steps)).unwrap_or_default())
        .map_err(|error| Unusable::Setup {
            step: "start a thread",
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        })?;
    match receiver.recv_timeout(patience) {
        Ok(outcome) => return outcome,
        Err(RecvTimeoutError::Disconnected) => return Err(Unusable::TimedOut),
        Err(RecvTimeoutError::Timeout) => {}
    }
    // Again and again: a signal that arrives just before the vCPU runs is lost on it.
    for _ in 0..STOP_PATIENCE.as_millis() / 10 {
        // SAFETY: the thread's handle is alive and was not joined, so that its id is valid, even if it has ended.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), stop_signal()) };
        if let Ok(outcome) = receiver.recv_timeout(Duration::from_millis(10)) {
            return outcome;
        }
    }
    // Stuck in the kernel. It holds a few pages and descriptors until it comes back; nothing can be done about it.
    Err(Unusable::TimedOut)
}

fn stop_signal() -> libc::c_int {
    libc::SIGRTMIN() + 5
}

/// Gives the stop signal a handler that does nothing, for good: one that is delivered late must not end the process.
fn ignore_stop_signal() -> Result<(), Errno> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: an all-zero sigaction is a valid one (no flags, an empty mask), and the handler is async-signal-safe: it does
    // nothing. Without SA_RESTART, KVM_RUN returns EINTR.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        libc::sigaction(stop_signal(), &raw const action, std::ptr::null_mut())
    };
    Errno::result(failed).map(drop)
}

fn run(steps: &[Step]) -> Result<Duration, Unusable> {
    let mut guest = Guest::new(steps)?;
    let before = thread_time();
    let outcome = guest.run();
    let cost = thread_time().saturating_sub(before);
    match outcome {
        // Stopped from outside: too slow if it had its share of the processor, else unknown.
        Err(Unusable::TimedOut) if cost > COST_MAX => Err(Unusable::TooSlow(cost)),
        Err(why) => Err(why),
        Ok(()) => guest.check(steps).map(|()| cost),
    }
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Unusable {
    move |error| Unusable::Setup { step, errno: Errno::from_raw(error.errno()) }
}

/// A VM with one vCPU. The fields are dropped in this order: the memory after the VM that has it mapped.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: Memory,
}

impl Guest {
    fn new(steps: &[Step]) -> Result<Self, Unusable> {
        let kvm = Kvm::new().map_err(|error| match Errno::from_raw(error.errno()) {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => Unusable::NoDevice,
            Errno::EACCES | Errno::EPERM => Unusable::Denied,
            errno => Unusable::Setup { step: "open /dev/kvm", errno },
        })?;
        let vm = kvm.create_vm().map_err(failed("create a VM"))?;
        vm.set_tss_address(TSS).map_err(failed("place the TSS"))?;
        let mut memory = Memory::new()?;
        memory.load(steps);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.0.as_ptr() as u64,
        };
        // SAFETY: the region is exactly our own mapping, which outlives the VM: see the order of the fields.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("give a VM memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("tell its CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("set a CPUID"))?;
        let sregs = vcpu.get_sregs().map_err(failed("read registers"))?;
        vcpu.set_sregs(&long_mode(sregs)).map_err(failed("enter long mode"))?;
        let regs = kvm_regs {
            rip: CODE,
            // Bit 1 is always set.
            rflags: 2,
            rdi: FXSAVE,
            rsi: PAIR,
            rax: OLD[0],
            rdx: OLD[1],
            r8: NEW[0],
            r9: NEW[1],
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(failed("set registers"))?;
        Ok(Self { vcpu, _vm: vm, memory })
    }

    fn run(&mut self) -> Result<(), Unusable> {
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, &[DONE])) if port == u16::from(PORT) => Ok(()),
            Ok(exit) => Err(Unusable::Ended(format!("{exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => Err(Unusable::TimedOut),
            Err(error) => Err(failed("run a vCPU")(error)),
        }
    }

    fn check(&self, steps: &[Step]) -> Result<(), Unusable> {
        if steps.contains(&Step::Fxsave) && self.memory.read(MXCSR_AT) & u64::from(u32::MAX) != u64::from(MXCSR) {
            return Err(Unusable::Wrong("fxsave"));
        }
        let pair = [self.memory.read(PAIR), self.memory.read(PAIR + 8)];
        if pair != if steps.contains(&Step::CompareExchange) { NEW } else { OLD } {
            return Err(Unusable::Wrong("cmpxchg16b"));
        }
        Ok(())
    }
}

/// Registers of a processor in 64-bit mode, as a VM entry wants them (Intel SDM volume 3, section 27.3.1).
fn long_mode(reset: kvm_sregs) -> kvm_sregs {
    // Accessed, so that the processor need not write a descriptor table that is not there.
    let flat = kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    // Type 11: code, execute and read, accessed. L without D: 64-bit.
    let code = kvm_segment { selector: 0x08, type_: 11, l: 1, db: 0, ..flat };
    // Type 3: data, read and write, accessed.
    let data = kvm_segment { selector: 0x10, type_: 3, db: 1, ..flat };
    kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        // TR keeps its value from reset: present, type 11, which in long mode is a busy 64-bit TSS.
        // PE, MP, ET, NE, WP, PG; caches on (CD and NW clear).
        cr0: 0x8001_0033,
        cr3: PML4,
        // PAE, OSFXSR, OSXMMEXCPT.
        cr4: 0x620,
        // LME, LMA.
        efer: 0x500,
        ..reset
    }
}

/// The guest's memory: a private mapping of [`MEMORY`] bytes.
struct Memory(NonNull<libc::c_void>);

impl Memory {
    fn new() -> Result<Self, Unusable> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), MEMORY, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(Unusable::Setup { step: "get memory", errno: Errno::last() });
        }
        Ok(Self(NonNull::new(mapped).expect("the kernel maps nothing at 0 unless asked to")))
    }

    /// Page tables, code and operands.
    fn load(&mut self, steps: &[Step]) {
        // Present and writable; the last level is one page of 2 MiB.
        self.write(PML4, &(PDPT | 0x3).to_le_bytes());
        self.write(PDPT, &(PD | 0x3).to_le_bytes());
        self.write(PD, &0x83_u64.to_le_bytes());
        self.write(CODE, &[body(steps), END.to_vec()].concat());
        self.write(PAIR, &[OLD[0].to_le_bytes(), OLD[1].to_le_bytes()].concat());
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).expect("below MEMORY");
        assert!(at + bytes.len() <= MEMORY, "the layout fits");
        // SAFETY: within the mapping by the assertion, and no vCPU runs while it is loaded.
        unsafe {
            self.0.cast::<u8>().add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
    }

    fn read(&self, at: u64) -> u64 {
        let at = usize::try_from(at).expect("below MEMORY");
        assert!(at + 8 <= MEMORY, "the layout fits");
        // SAFETY: within the mapping by the assertion; the vCPU has stopped.
        unsafe { self.0.cast::<u8>().add(at).cast::<u64>().read_unaligned() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length, and unmapped only here, after the VM is gone.
        unsafe { libc::munmap(self.0.as_ptr(), MEMORY) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Runs the guest's own instructions on this processor, on the same memory layout.
    fn run_natively(steps: &[Step]) -> Memory {
        let code = Memory::new().unwrap();
        let mut data = Memory::new().unwrap();
        data.load(steps);
        let bytes = [body(steps), vec![0xc3]].concat();
        // SAFETY: the code page is our own; the code uses rax, rbx, rcx, rdx and flags, all declared or saved below, writes
        // only to the 512 and 16 bytes that rdi and rsi point to, and returns.
        unsafe {
            code.0.cast::<u8>().copy_from_nonoverlapping(NonNull::from(bytes.as_slice()).cast(), bytes.len());
            assert_eq!(libc::mprotect(code.0.as_ptr(), MEMORY, libc::PROT_READ | libc::PROT_EXEC), 0);
            let base = data.0.as_ptr() as u64;
            std::arch::asm!(
                "push rbx", "call {code}", "pop rbx",
                code = in(reg) code.0.as_ptr(),
                in("rdi") base + FXSAVE, in("rsi") base + PAIR,
                inout("rax") OLD[0] => _, inout("rdx") OLD[1] => _, in("r8") NEW[0], in("r9") NEW[1], out("rcx") _,
            );
        }
        data
    }

    /// What KVM on this host makes of the steps, or `None` where there is no KVM at all to ask.
    fn run_in_kvm(steps: &[Step], patience: Duration) -> Option<Result<Duration, Unusable>> {
        match run_within(steps.to_vec(), patience) {
            Err(why @ (Unusable::NoDevice | Unusable::Denied)) => {
                eprintln!("skipped: {why}");
                None
            }
            outcome => Some(outcome),
        }
    }

    #[test]
    fn the_instructions_do_what_is_checked() {
        let all = [Step::Fxsave, Step::CompareExchange, Step::Loop(1000)];
        let memory = run_natively(&all);
        assert_eq!(memory.read(MXCSR_AT) & 0xffff_ffff, u64::from(MXCSR));
        assert_eq!([memory.read(PAIR), memory.read(PAIR + 8)], NEW);
        // And are left undone where they are left out.
        let memory = run_natively(&[Step::Loop(1)]);
        assert_eq!([memory.read(PAIR), memory.read(PAIR + 8), memory.read(MXCSR_AT)], [OLD[0], OLD[1], 0]);
    }

    #[test]
    fn a_million_turns_take_a_processor_less_than_the_limit() {
        // On the wall, and this host may be busy: the best of several.
        let best = (0..10).map(|_| {
            let start = Instant::now();
            run_natively(&[Step::Loop(TURNS)]);
            start.elapsed()
        });
        let best = best.min().unwrap();
        assert!(best < COST_MAX / 4, "{best:?}");
    }

    /// Page tables, segments and control registers, on any KVM that runs 64-bit code at all, however slowly.
    #[test]
    fn a_short_guest_reaches_its_end_in_long_mode() {
        let Some(outcome) = run_in_kvm(&[Step::Loop(100)], Duration::from_secs(10)) else { return };
        outcome.unwrap();
    }

    /// The verdict must follow from what the steps do one by one.
    #[test]
    fn the_verdict_agrees_with_the_steps() {
        let Some(whole) = run_in_kvm(&[Step::Loop(1)], Duration::from_secs(10)).map(|_| probe()) else { return };
        let patience = Duration::from_secs(20);
        let single = [Step::Fxsave, Step::CompareExchange, Step::Loop(TURNS)]
            .map(|step| run_in_kvm(&[step], patience).expect("KVM was there a moment ago"));
        eprintln!("probe: {whole:?}; step by step: {single:?}");
        let sound = single.iter().all(|outcome| outcome.as_ref().is_ok_and(|cost| *cost < COST_MAX));
        assert_eq!(whole.is_ok(), sound, "{whole:?} against {single:?}");
    }

    /// A guest that never ends is stopped, and soon.
    #[test]
    fn an_endless_guest_is_stopped() {
        let start = Instant::now();
        let Some(outcome) = run_in_kvm(&[Step::Loop(u32::MAX)], Duration::from_millis(100)) else { return };
        let took = start.elapsed();
        assert!(matches!(outcome, Err(Unusable::TooSlow(_) | Unusable::TimedOut)), "{outcome:?}");
        assert!(took < PATIENCE + STOP_PATIENCE, "{took:?}");
    }
}
