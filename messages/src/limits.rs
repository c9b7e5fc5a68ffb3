//! Every size and count bound of the wire, in one place.

/// The longest frame between `banger` and `bangerd`, in bytes. A list of 10,000 VMs fits.
pub const CONTROL_FRAME_MAX: usize = 8 << 20;
/// The longest frame between `bangerd` and `bangerd-root`, in bytes.
pub const PRIVILEGED_FRAME_MAX: usize = 256 << 10;
/// The longest frame to or from a guest, in bytes. A guest is hostile: this bounds what it can make us hold.
pub const GUEST_FRAME_MAX: usize = 256 << 10;
/// The longest payload of one stdin, stdout or stderr frame, in bytes; leaves room for the frame's own fields.
pub const STREAM_CHUNK_MAX: usize = 128 << 10;
/// How many bytes of stdin a client may send before the agent grants more.
pub const STDIN_WINDOW: u32 = 1 << 20;
/// The longest hello, in bytes.
pub const HELLO_FRAME_MAX: usize = 256;
/// The longest VM name: a DNS label (RFC 1035 section 2.3.4).
pub const NAME_MAX: usize = 63;
/// The longest image or kernel reference, in bytes.
pub const REFERENCE_MAX: usize = 512;
/// The longest path that a client may name, in bytes (`PATH_MAX` - 1, linux/limits.h).
pub const HOST_PATH_MAX: usize = 4095;
/// The longest kernel command line of ours, in bytes. x86 takes 2047 (`COMMAND_LINE_SIZE`, asm/setup.h): half of that is left for what
/// the VMM adds for each device.
pub const COMMAND_LINE_MAX: usize = 1024;
/// How many arguments, environment variables or labels one request may carry.
pub const LIST_MAX: usize = 4096;
/// The longest path of a Unix socket that the kernel takes, without the final NUL (`sun_path`, unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;
/// The longest message of one link in an error chain, in bytes; longer ones are cut.
pub const ERROR_MESSAGE_MAX: usize = 4096;
/// The most vCPUs of a VM; Firecracker's own limit (`vcpu_count` in its API).
pub const VM_VCPUS_MAX: u8 = 32;
/// The least memory of a VM, in MiB: below it Debian's kernel and our initramfs do not boot.
pub const VM_MEMORY_MIN_MIB: u32 = 128;
/// The most memory of a VM, in MiB; whether the host has it is for admission to say.
pub const VM_MEMORY_MAX_MIB: u32 = 16 << 20;
/// The smallest writable disk, in bytes: journal and inode tables leave something to write to.
pub const VM_DISK_MIN_BYTES: u64 = 64 << 20;
/// The largest writable disk, in bytes.
pub const VM_DISK_MAX_BYTES: u64 = 8 << 40;
/// How many taps an instance may have: the ports of one Linux bridge (`BR_MAX_PORTS` - 1, `net/bridge/br_private.h`).
pub const TAPS_MAX: u16 = 1023;
/// How many things one VM may be allowed to reach (`--net-allow`).
pub const NET_ALLOW_MAX: usize = 32;
/// How many grants an instance may have: 32 for each of 512 VMs; all of them fit into one frame and one transaction.
pub const GRANTS_MAX: usize = 16 << 10;
