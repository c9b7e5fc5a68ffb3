//! One file out of a package of npm's: what Debian does not package, and its makers publish there as a built binary.
//!
//! The catalog pins package, version and integrity hash; which registry is asked is the host's own setting, found as npm
//! finds it. No address is ours. Blocks.

use super::{Cancel, Reporter};
use crate::oci::http;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use messages::{ErrorKind, WireError};
use nix::unistd::{Uid, User};
use serde::Deserialize;
use sha2::{Digest, Sha512};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The largest package that is taken, compressed: it waits in memory.
const PACKAGE_MAX: u64 = 256 << 20;
/// The largest file that is taken out of one.
const MEMBER_MAX: u64 = 512 << 20;
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// Without a byte for so long, the registry counts as gone.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NpmFile {
    /// `name` or `@scope/name`.
    pub package: String,
    pub version: String,
    /// npm's own `dist.integrity` of the package: `sha512-` and base64.
    pub integrity: String,
    /// The file's path in the package, below `package/`.
    pub member: String,
    /// Where it is put in the image, without a leading `/`; executable, of root's.
    pub path: String,
}

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
pub enum NpmError {
    #[error("no npm registry is configured on this host")]
    NoRegistry,
    #[error("failed to fetch `{package}` from the npm registry")]
    Fetch {
        package: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("`{package}` is not what the catalog pins: its integrity is `{found}`, not `{pinned}`")]
    Integrity { package: String, pinned: String, found: String },
    #[error("`{package}` has no file `{member}`")]
    NoMember { package: String, member: String },
    #[error("the pull was stopped")]
    Cancelled,
}

impl NpmError {
    /// True where the file is just out of reach: an image can do without it, and says so. Anything else is a fault.
    #[must_use]
    pub const fn out_of_reach(&self) -> bool {
        matches!(self, Self::NoRegistry | Self::Fetch { .. })
    }
}

impl From<&NpmError> for WireError {
    fn from(error: &NpmError) -> Self {
        let kind = match error {
            NpmError::Cancelled => ErrorKind::Cancelled,
            NpmError::NoRegistry => ErrorKind::Host,
            NpmError::Fetch { .. } | NpmError::Integrity { .. } | NpmError::NoMember { .. } => ErrorKind::Download,
        };
        Self::from_error(kind, error)
    }
}

impl NpmFile {
    /// The package and its version, as npm writes it.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("{}@{}", self.package, self.version)
    }

    /// Fetches the package, checks it and gives the file's contents.
    ///
    /// # Errors
    /// [`NpmError`].
    pub fn fetch(&self, cancel: &Cancel, reporter: &Reporter) -> Result<Vec<u8>, NpmError> {
        let registry = registry(&self.package).ok_or(NpmError::NoRegistry)?;
        self.fetch_from(&registry, cancel, reporter)
    }

    fn fetch_from(&self, registry: &str, cancel: &Cancel, reporter: &Reporter) -> Result<Vec<u8>, NpmError> {
        let failed = |source| NpmError::Fetch { package: self.shown(), source };
        let name = self.package.rsplit('/').next().unwrap_or(&self.package);
        let url = format!("{}/{}/-/{name}-{}.tgz", registry.trim_end_matches('/'), self.package, self.version);
        let client = client().map_err(|error| failed(error.into()))?;
        let response = client.get(url).send().and_then(reqwest::blocking::Response::error_for_status);
        // Without the address: it may hold a password.
        let mut response = response.map_err(|error| failed(error.without_url().into()))?;
        let total = response.content_length();
        let mut package = Vec::new();
        let mut chunk = vec![0; 1 << 20];
        loop {
            if cancel.is_cancelled() {
                return Err(NpmError::Cancelled);
            }
            match response.read(&mut chunk).map_err(|error| failed(error.into()))? {
                0 => break,
                count => package.extend_from_slice(&chunk[..count]),
            }
            if package.len() as u64 > PACKAGE_MAX {
                return Err(failed(format!("it is longer than {} MiB", PACKAGE_MAX >> 20).into()));
            }
            reporter.amount(format!("fetching {}", self.shown()), package.len() as u64, total);
        }
        self.member_of(&package)
    }

    fn member_of(&self, package: &[u8]) -> Result<Vec<u8>, NpmError> {
        let found = format!("sha512-{}", BASE64_STANDARD.encode(Sha512::digest(package)));
        if found != self.integrity {
            return Err(NpmError::Integrity { package: self.shown(), pinned: self.integrity.clone(), found });
        }
        let failed = |source: std::io::Error| NpmError::Fetch { package: self.shown(), source: source.into() };
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(package));
        let wanted = Path::new("package").join(&self.member);
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            if entry.header().entry_type().is_file() && entry.path().is_ok_and(|path| path == wanted) {
                let mut contents = Vec::new();
                entry.by_ref().take(MEMBER_MAX).read_to_end(&mut contents).map_err(failed)?;
                return Ok(contents);
            }
        }
        Err(NpmError::NoMember { package: self.shown(), member: self.member.clone() })
    }
}

fn client() -> reqwest::Result<reqwest::blocking::Client> {
    http::install_provider();
    reqwest::blocking::Client::builder()
        .user_agent(http::USER_AGENT)
        .connect_timeout(CONNECT_DEADLINE)
        // For each wait: reading has the deadline anew with every byte.
        .timeout(READ_DEADLINE)
        .build()
}

/// The registry that npm would ask: its environment variable, the user's and the system's `.npmrc`, npm itself.
fn registry(package: &str) -> Option<String> {
    let scope = package.split_once('/').map(|(scope, _)| scope);
    let from_env = ["npm_config_registry", "NPM_CONFIG_REGISTRY"].iter().find_map(|name| std::env::var(name).ok());
    let home = User::from_uid(Uid::effective()).ok().flatten().map(|user| user.dir);
    let files = [home.map(|home| home.join(".npmrc")), Some(PathBuf::from("/etc/npmrc"))];
    let texts: Vec<String> =
        files.into_iter().flatten().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    scope
        .and_then(|scope| texts.iter().find_map(|text| setting(text, &format!("{scope}:registry"))))
        .or(from_env)
        .or_else(|| texts.iter().find_map(|text| setting(text, "registry")))
        .or_else(npms_own)
        .filter(|registry| registry.starts_with("https://") || registry.starts_with("http://"))
}

/// A setting of an `.npmrc`: `key=value` lines, comments by `;` and `#`.
fn setting(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.starts_with([';', '#']));
    let value = lines.find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })?;
    // npm fills in `${NAME}` from the environment.
    match value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
        Some(name) => std::env::var(name).ok(),
        None => Some(value.to_owned()),
    }
}

/// What npm has built in.
fn npms_own() -> Option<String> {
    let mut command = Command::new("npm");
    command.args(["config", "get", "registry"]).current_dir("/").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::reply::Stage;
    use std::io::Write;
    use std::net::TcpListener;

    fn package(member: &str, contents: &[u8]) -> Vec<u8> {
        let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, member, contents).unwrap();
        archive.into_inner().unwrap().finish().unwrap()
    }

    fn pinned(package: &[u8]) -> NpmFile {
        NpmFile {
            package: "@maker/tool".into(),
            version: "1.2.3".into(),
            integrity: format!("sha512-{}", BASE64_STANDARD.encode(Sha512::digest(package))),
            member: "bin/tool".into(),
            path: "usr/local/bin/tool".into(),
        }
    }

    /// Answers one request, and gives its first line.
    fn serve(status: &'static str, body: Vec<u8>) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len()).unwrap();
            // A client that has seen enough leaves.
            drop(stream.write_all(&body));
            String::from_utf8_lossy(&request[..count]).lines().next().unwrap().to_owned()
        });
        (address, thread)
    }

    fn fetch(file: &NpmFile, address: &str) -> Result<Vec<u8>, NpmError> {
        file.fetch_from(address, &Cancel::new(), &Reporter::silent(Stage::ImagePull))
    }

    #[test]
    fn a_pinned_file_comes_out_of_its_package() {
        let bytes = package("package/bin/tool", b"a tool");
        let (address, thread) = serve("200 OK", bytes.clone());
        assert_eq!(fetch(&pinned(&bytes), &format!("{address}/")).unwrap(), b"a tool");
        assert_eq!(thread.join().unwrap(), "GET /@maker/tool/-/tool-1.2.3.tgz HTTP/1.1");
    }

    #[test]
    fn anything_else_is_refused() {
        let bytes = package("package/bin/tool", b"a tool");
        let file = pinned(&bytes);
        let (address, thread) = serve("200 OK", package("package/bin/tool", b"a worm"));
        let error = fetch(&file, &address).unwrap_err();
        assert!(matches!(error, NpmError::Integrity { .. }) && !error.out_of_reach(), "{error}");
        thread.join().unwrap();
        let other = package("package/bin/other", b"a tool");
        let error = pinned(&other).member_of(&other).unwrap_err();
        assert!(matches!(error, NpmError::NoMember { .. }) && !error.out_of_reach(), "{error}");
    }

    #[test]
    fn a_registry_that_does_not_have_it_is_out_of_reach() {
        let (address, thread) = serve("404 Not Found", Vec::new());
        let file = pinned(b"");
        let error = fetch(&file, &address).unwrap_err();
        assert!(error.out_of_reach() && WireError::from(&error).chain.join(" ").contains("404"), "{error:?}");
        thread.join().unwrap();
        assert!(fetch(&file, "http://127.0.0.1:1").unwrap_err().out_of_reach());
    }

    #[test]
    fn settings_are_read_as_npm_reads_them() {
        let text =
            "; registry=no\nfund=false\n registry = \"https://one.example/\" \n@maker:registry=https://two.example\n";
        assert_eq!(setting(text, "registry").as_deref(), Some("https://one.example/"));
        assert_eq!(setting(text, "@maker:registry").as_deref(), Some("https://two.example"));
        assert_eq!(setting("registry=${NO_SUCH_VARIABLE}", "registry"), None);
        assert_eq!(setting("", "registry"), None);
    }
}
