//! Who the guest is, written where its programs look. Given at each boot, so files are written only where they differ. For a
//! process that has entered the guest's root: no path leads outside.

use messages::guest::{BootSpec, GuestNetwork, HOSTS_MARK};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Runtime files of the agent, host keys among them.
pub const RUNTIME_DIRECTORY: &str = "/run/banger";
/// The managed keys, for users other than root: sshd reads it as the user who comes, and nobody else may look into
/// [`RUNTIME_DIRECTORY`].
const EVERYBODYS_KEYS: &str = "/run/banger-authorized_keys";

/// Says which part of an identity was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("failed to write `{path}`")]
    Write { path: String, source: io::Error },
    #[error("failed to set the host name")]
    HostName(#[source] io::Error),
    #[error("failed to set the clock")]
    Clock(#[source] io::Error),
    #[error("failed to seed the random pool")]
    Entropy(#[source] io::Error),
}

/// Time and randomness: needs no root, and everything else wants them.
///
/// # Errors
/// [`IdentityError`].
pub fn wake(clock_unix_ns: u64, entropy: &[u8; 32]) -> Result<(), IdentityError> {
    set_clock(clock_unix_ns).map_err(IdentityError::Clock)?;
    let seed = || -> io::Result<()> {
        let random = fs::File::open("/dev/urandom")?;
        crate::sys::add_entropy(random.as_fd(), entropy)?;
        crate::sys::reseed(random.as_fd())
    };
    seed().map_err(IdentityError::Entropy)
}

/// Sets the wall clock.
///
/// # Errors
/// The kernel's.
pub fn set_clock(unix_ns: u64) -> io::Result<()> {
    let time = std::time::Duration::from_nanos(unix_ns);
    Ok(nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time.into())?)
}

/// Everything else of the spec that is a name or a file. What cannot be written on the guest's own disk is said, and no reason not to
/// boot: a user who has made `/etc/resolv.conf` immutable means it, and one who has broken it needs a way in.
///
/// # Errors
/// [`IdentityError`].
pub fn assume(spec: &BootSpec) -> Result<Lacking, IdentityError> {
    let name = spec.name.as_str();
    nix::unistd::sethostname(name).map_err(|error| IdentityError::HostName(error.into()))?;
    directory(Path::new(RUNTIME_DIRECTORY), 0o700)?;
    write_ssh(spec)?;
    let mut lacking = Lacking::default();
    lacking.note(directory(Path::new("/etc"), 0o755));
    lacking.note(write("/etc/hostname", format!("{name}\n").as_bytes(), 0o644));
    lacking.note(write("/etc/machine-id", format!("{}\n", spec.machine_id).as_bytes(), 0o444));
    lacking.note(rewrite("/etc/hosts", 0o644, |old| hosts_file(old, name, spec.network.as_ref())));
    if let Some(network) = &spec.network {
        lacking.note(write_resolvers("/etc/resolv.conf", network));
    }
    if !spec.authorized_keys.is_empty() {
        lacking.note(let_in(Path::new("/root"), &spec.authorized_keys));
    }
    Ok(lacking)
}

/// Parts of an identity that were not taken over.
#[derive(Debug, Default)]
pub struct Lacking(Vec<String>);

impl Lacking {
    fn note(&mut self, result: Result<(), IdentityError>) {
        let Err(error) = result else { return };
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        tracing::warn!("{error}{cause}");
        self.0.push(format!("{error}{cause}"));
    }

    /// For whoever looks at the VM; `None` where nothing is lacking.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.join("; "))
    }
}

fn hosts_file(old: &[u8], name: &str, network: Option<&GuestNetwork>) -> Vec<u8> {
    let mut lines = lines(old);
    lines.retain(|line| !line.ends_with(HOSTS_MARK.as_bytes()));
    let is_localhosts = |line: &&[u8]| line.split(u8::is_ascii_whitespace).skip(1).any(|word| word == b"localhost");
    if !lines.iter().any(is_localhosts) {
        lines.insert(0, b"::1 localhost ip6-localhost ip6-loopback");
        lines.insert(0, b"127.0.0.1 localhost");
    }
    let address = network.map_or_else(|| "127.0.1.1".to_owned(), |network| network.address.to_string());
    let own = format!("{address} {name}.vm {name} {HOSTS_MARK}");
    lines.push(own.as_bytes());
    text(&lines)
}

/// The lines of a file that may be anything: whoever wrote it need not have written UTF-8.
fn lines(file: &[u8]) -> Vec<&[u8]> {
    let file = file.strip_suffix(b"\n").unwrap_or(file);
    if file.is_empty() { Vec::new() } else { file.split(|byte| *byte == b'\n').collect() }
}

fn text(lines: &[&[u8]]) -> Vec<u8> {
    let mut text = lines.join(&b'\n');
    text.push(b'\n');
    text
}

fn resolver_file(network: &GuestNetwork) -> String {
    let servers = network.resolvers.iter().map(|resolver| format!("nameserver {resolver}\n"));
    servers.chain(std::iter::once("search vm\n".to_owned())).collect()
}

/// The file is often a link to one that a resolver's daemon would make later.
fn write_resolvers(path: &str, network: &GuestNetwork) -> Result<(), IdentityError> {
    let content = resolver_file(network);
    match write(path, content.as_bytes(), 0o644) {
        Err(IdentityError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let target = fs::read_link(path).map_err(|source| IdentityError::Write { path: path.into(), source })?;
            let target = Path::new("/etc").join(target);
            if let Some(parent) = target.parent() {
                directory(parent, 0o755)?;
            }
            write(path, content.as_bytes(), 0o644)
        }
        other => other,
    }
}

/// Host keys and sshd's configuration, and the keys that open the door to everybody, where the image cannot be in the way.
fn write_ssh(spec: &BootSpec) -> Result<(), IdentityError> {
    let mut config = String::from(SSHD_CONFIG);
    for (index, key) in spec.ssh_host_keys.iter().enumerate() {
        let path = format!("{RUNTIME_DIRECTORY}/ssh_host_key_{index}");
        write(&path, key.private.as_bytes(), 0o600)?;
        write(&format!("{path}.pub"), format!("{}\n", key.public.trim_end()).as_bytes(), 0o644)?;
        config.push_str(&format!("HostKey {path}\n"));
    }
    config.push_str(&format!("AuthorizedKeysFile .ssh/authorized_keys {EVERYBODYS_KEYS}\n"));
    write(&format!("{RUNTIME_DIRECTORY}/sshd_config"), config.as_bytes(), 0o600)?;
    if spec.authorized_keys.is_empty() {
        return Ok(());
    }
    write(EVERYBODYS_KEYS, &with_keys(b"", &spec.authorized_keys), 0o644)
}

/// Opens root's door. With what StrictModes wants of every directory on the way.
fn let_in(home: &Path, keys: &[String]) -> Result<(), IdentityError> {
    directory(home, 0o700)?;
    own(home, 0o755)?;
    let directory_of_keys = home.join(".ssh");
    directory(&directory_of_keys, 0o700)?;
    own(&directory_of_keys, 0o700)?;
    let path = directory_of_keys.join("authorized_keys");
    rewrite(&path.to_string_lossy(), 0o600, |old| with_keys(old, keys))?;
    own(&path, 0o600)
}

const SSHD_CONFIG: &str = "\
# Written by banger-agent at each boot; changes are lost.
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes yes
UsePAM yes
PrintMotd no
MaxSessions 1000
MaxStartups 100
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
";

/// The user's own keys stay.
fn with_keys(old: &[u8], keys: &[String]) -> Vec<u8> {
    let mut lines = lines(old);
    for key in keys {
        let key = key.trim().as_bytes();
        if !lines.iter().any(|line| line.trim_ascii() == key) {
            lines.push(key);
        }
    }
    text(&lines)
}

/// Root's, with at most these permissions.
fn own(path: &Path, mode: u32) -> Result<(), IdentityError> {
    let owned = || -> io::Result<()> {
        let metadata = fs::metadata(path)?;
        // One that is root's already may be immutable.
        if (metadata.uid(), metadata.gid()) != (0, 0) {
            std::os::unix::fs::chown(path, Some(0), Some(0))?;
        }
        let old = metadata.permissions().mode() & 0o7777;
        if old & mode != old { fs::set_permissions(path, fs::Permissions::from_mode(old & mode)) } else { Ok(()) }
    };
    owned().map_err(|source| IdentityError::Write { path: path.display().to_string(), source })
}

/// Makes a directory and its parents where they are missing.
///
/// # Errors
/// [`IdentityError::Write`].
pub fn directory(path: &Path, mode: u32) -> Result<(), IdentityError> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| IdentityError::Write { path: path.display().to_string(), source })
}

/// Changes a file that others write too. One that cannot be read is left as it is: it is not ours to throw away.
fn rewrite(path: &str, mode: u32, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<(), IdentityError> {
    match fs::read(path) {
        Ok(old) => write(path, &change(&old), mode),
        Err(error) if error.kind() == io::ErrorKind::NotFound => write(path, &change(b""), mode),
        Err(error) => {
            tracing::warn!(%error, path, "a file stays without what belongs into it");
            Ok(())
        }
    }
}

/// Writes a file where its content differs: an unchanged identity costs the disk nothing.
///
/// # Errors
/// [`IdentityError::Write`].
pub fn write(path: &str, content: &[u8], mode: u32) -> Result<(), IdentityError> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let put = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(PathBuf::from(path))?;
        file.write_all(content)
    };
    put().map_err(|source| IdentityError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn network() -> GuestNetwork {
        GuestNetwork {
            mac: [6, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(198, 51, 100, 2),
            prefix: 24,
            gateway: Ipv4Addr::new(198, 51, 100, 1),
            mtu: None,
            resolvers: vec![Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(192, 0, 2, 1)],
            ipv6: None,
        }
    }

    #[test]
    fn the_hosts_file_keeps_what_users_wrote_and_changes_its_own_line_only() {
        let first = hosts_file(b"127.0.0.1\tlocalhost\n192.0.2.7 mine\n", "old", None);
        assert_eq!(first, b"127.0.0.1\tlocalhost\n192.0.2.7 mine\n127.0.1.1 old.vm old # banger\n");
        let second = hosts_file(&first, "new", Some(&network()));
        assert_eq!(second, b"127.0.0.1\tlocalhost\n192.0.2.7 mine\n198.51.100.2 new.vm new # banger\n");
        assert_eq!(hosts_file(&second, "new", Some(&network())), second);
        assert!(hosts_file(b"", "x", None).starts_with(b"127.0.0.1 localhost\n::1 localhost"));
        let odd = hosts_file(b"192.0.2.7 m\xfcller\n\n127.0.0.1 localhost", "x", None);
        assert!(odd.starts_with(b"192.0.2.7 m\xfcller\n\n127.0.0.1 localhost\n127.0.1.1 x.vm"));
    }

    #[test]
    fn resolvers_are_listed_in_order() {
        assert_eq!(resolver_file(&network()), "nameserver 198.51.100.1\nnameserver 192.0.2.1\nsearch vm\n");
    }

    #[test]
    fn keys_are_added_once() {
        let keys = ["ssh-ed25519 AAAA managed".to_owned()];
        let once = with_keys(b"ssh-rsa BBBB m\xfcller\n", &keys);
        assert_eq!(once, b"ssh-rsa BBBB m\xfcller\nssh-ed25519 AAAA managed\n");
        assert_eq!(with_keys(&once, &keys), once);
        assert_eq!(with_keys(b"", &keys), b"ssh-ed25519 AAAA managed\n");
    }

    #[test]
    fn what_is_in_the_way_is_said_and_nothing_more() {
        let directory = tempfile::tempdir().unwrap();
        let mut lacking = Lacking::default();
        lacking.note(Ok(()));
        assert_eq!(lacking.warning(), None);
        let resolvers = directory.path().join("resolv.conf");
        fs::create_dir(&resolvers).unwrap();
        lacking.note(write_resolvers(resolvers.to_str().unwrap(), &network()));
        fs::write(directory.path().join(".ssh"), "no directory").unwrap();
        lacking.note(let_in(directory.path(), &["ssh-ed25519 AAAA managed".to_owned()]));
        let warning = lacking.warning().unwrap();
        assert!(warning.contains("resolv.conf`: Is a directory") && warning.contains("; failed to write"), "{warning}");
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let name = path.to_str().unwrap();
        fs::create_dir(&path).unwrap();
        rewrite(name, 0o600, |_| panic!("nothing was read")).unwrap();
        fs::remove_dir(&path).unwrap();
        rewrite(name, 0o600, |old| [old, b"one\n"].concat()).unwrap();
        rewrite(name, 0o600, |old| [old, b"two\n"].concat()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn files_are_written_where_they_differ() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let name = path.to_str().unwrap();
        write(name, b"one", 0o600).unwrap();
        let written = fs::metadata(&path).unwrap();
        assert_eq!(written.permissions().mode() & 0o777, 0o600);
        write(name, b"one", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written.modified().unwrap());
        write(name, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }
}
