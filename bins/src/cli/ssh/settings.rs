//! What the user's own `ssh` is told to reach a VM: as flags for `vm ssh`, and as the file that `ssh-config` lets it include.
//! Pure.

use super::SshFiles;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The domain of VMs.
pub(super) const DOMAIN: &str = ".vm";

/// Which ssh_config(5) keyword and what value, for one VM or for all.
type Setting = (&'static str, String);

/// A path that no line of ssh_config(5) can hold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path `{0}` has a character that an ssh config cannot hold")]
pub(super) struct Unquotable(String);

/// A path as a value in ssh_config(5), which expands `%` in it.
fn value(path: &Path) -> Result<String, Unquotable> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\n', '\r', '\\']));
    let text = text.ok_or_else(|| Unquotable(path.to_string_lossy().into_owned()))?;
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// A word for a POSIX shell.
pub(super) fn shell_word(bytes: &[u8]) -> Vec<u8> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:,@+%".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return bytes.to_vec();
    }
    let mut word = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => word.extend(br"'\''"),
            byte => word.push(*byte),
        }
    }
    word.push(b'\'');
    word
}

/// The command line behind `ProxyCommand`, which `ssh` expands and hands to a shell. `vm` is a token of ssh's or a VM's id.
fn proxy_command(files: &SshFiles, vm: &str) -> Result<String, Unquotable> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    if !files.environment.is_empty() {
        words.push(b"env".to_vec());
        for (name, value) in &files.environment {
            words.push(shell_word(&[name.as_bytes(), b"=", value.as_bytes()].concat()));
        }
    }
    words.push(shell_word(files.program.as_os_str().as_bytes()));
    let line = String::from_utf8(words.join(&b' ')).ok().filter(|line| !line.contains(['\n', '\r']));
    let line = line.ok_or_else(|| Unquotable(files.program.display().to_string()))?;
    Ok(format!("{} vm connect {vm}", line.replace('%', "%%")))
}

fn common(files: &SshFiles, vm: &str) -> Result<Vec<Setting>, Unquotable> {
    let text = str::to_owned;
    Ok(vec![
        ("ProxyCommand", proxy_command(files, vm)?),
        // The connection itself is handed over: no byte passes through us.
        ("ProxyUseFdpass", text("yes")),
        ("IdentityFile", value(&files.key)?),
        ("IdentitiesOnly", text("yes")),
        ("UserKnownHostsFile", value(&files.known_hosts)?),
        ("GlobalKnownHostsFile", text("/dev/null")),
        // Every key is known beforehand: an unknown one is a wrong one.
        ("StrictHostKeyChecking", text("yes")),
        ("HostKeyAlgorithms", text("ssh-ed25519")),
        ("UpdateHostKeys", text("no")),
        // Addresses are given again to other VMs; names and ids are what a key belongs to.
        ("CheckHostIP", text("no")),
        ("VerifyHostKeyDNS", text("no")),
    ])
}

/// The file for `Include`.
pub(super) fn config_file(files: &SshFiles) -> Result<String, Unquotable> {
    let mut text = String::from("# Written by `banger ssh-config`; changes are lost.\nHost *.vm\n    User root\n");
    for (keyword, value) in common(files, "%n")? {
        text.push_str(&format!("    {keyword} {value}\n"));
    }
    Ok(text)
}

/// The arguments of `ssh` to one VM, whose name is only for people and their own ssh config.
pub(super) fn arguments(files: &SshFiles, id: &str, name: &str) -> Result<Vec<OsString>, Unquotable> {
    let alias = ("HostKeyAlias", format!("{id}{DOMAIN}"));
    let mut arguments = Vec::new();
    for (keyword, value) in common(files, id)?.into_iter().chain([alias]) {
        arguments.push("-o".into());
        arguments.push(format!("{keyword}={value}").into());
    }
    arguments.extend(["-l".into(), "root".into(), format!("{name}{DOMAIN}").into()]);
    Ok(arguments)
}

/// A command for the guest's shell: one argument is a line of it, several are the words of a command.
pub(super) fn remote_command(argv: Vec<OsString>) -> Option<OsString> {
    use std::os::unix::ffi::OsStringExt as _;
    match <[OsString; 1]>::try_from(argv) {
        Ok([line]) => Some(line),
        Err(words) if words.is_empty() => None,
        Err(words) => {
            let words: Vec<Vec<u8>> = words.iter().map(|word| shell_word(word.as_bytes())).collect();
            Some(OsString::from_vec(words.join(&b' ')))
        }
    }
}

/// The VM that a host name of ssh's means.
pub(super) fn vm_of_host(host: &str) -> &str {
    host.strip_suffix(DOMAIN).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> SshFiles {
        SshFiles {
            program: "/opt/my banger/100%/banger".into(),
            environment: vec![("BANGER_STATE_DIR".into(), "/srv/it's".into())],
            key: "/home/u/.local/state/banger/ssh/id_ed25519".into(),
            known_hosts: "/home/u/a b/known_hosts".into(),
            config: "/home/u/a b/config".into(),
        }
    }

    #[test]
    fn the_file_is_one_block_that_ssh_can_read() {
        let text = config_file(&files()).unwrap();
        assert!(text.starts_with("# Written by"), "{text}");
        assert_eq!(text.matches("Host *.vm\n").count(), 1);
        let proxy = r"    ProxyCommand env 'BANGER_STATE_DIR=/srv/it'\''s' '/opt/my banger/100%%/banger' vm connect %n";
        assert!(text.lines().any(|line| line == proxy), "{text}");
        assert!(text.contains("    UserKnownHostsFile \"/home/u/a b/known_hosts\"\n"), "{text}");
        let odd = SshFiles { key: "/a\"b".into(), ..files() };
        assert_eq!(config_file(&odd), Err(Unquotable("/a\"b".into())));
    }

    #[test]
    fn the_alias_is_the_id_and_the_host_is_the_name() {
        let arguments = arguments(&files(), "0123456789abcdef", "box").unwrap();
        assert!(arguments.contains(&"HostKeyAlias=0123456789abcdef.vm".into()), "{arguments:?}");
        assert_eq!(arguments.last(), Some(&"box.vm".into()));
        assert_eq!((vm_of_host("box.vm"), vm_of_host("0123")), ("box", "0123"));
    }

    #[test]
    fn one_argument_is_a_line_and_several_are_words() {
        let command = |words: &[&str]| remote_command(words.iter().map(OsString::from).collect());
        assert_eq!(command(&[]), None);
        assert_eq!(command(&["echo $HOME | wc"]), Some("echo $HOME | wc".into()));
        assert_eq!(command(&["sh", "-c", "exit 7", ""]), Some("sh -c 'exit 7' ''".into()));
        assert_eq!(command(&["echo", "it's"]), Some(r"echo 'it'\''s'".into()));
    }
}
