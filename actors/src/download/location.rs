//! Where a file is: an address of the web, or a path of this host. Pure.

use super::DownloadError;
use crate::oci::reference::is_sha256;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// The longest address that is taken, in bytes.
const ADDRESS_MAX: usize = 4096;

/// `https://…`, `http://…` or `file:///…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Location {
    Web(Url),
    File(PathBuf),
}

/// A file, and the only contents that it may have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    pub url: Location,
    /// 64 hexadecimal digits in lower case.
    pub sha256: Sha256Hex,
}

/// A SHA-256 as text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Sha256Hex(String);

impl Sha256Hex {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Sha256Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digest = if text.starts_with("sha256:") { text } else { format!("sha256:{text}") };
        if is_sha256(&digest) {
            Ok(Self(digest["sha256:".len()..].to_owned()))
        } else {
            Err("a sha256 has 64 hexadecimal digits in lower case".to_owned())
        }
    }
}

impl Location {
    /// Reads an address.
    ///
    /// # Errors
    /// When it is none, or one that cannot be used.
    pub fn parse(text: &str) -> Result<Self, DownloadError> {
        let wrong = |why| DownloadError::Address { text: text.chars().take(200).collect(), why };
        if text.len() > ADDRESS_MAX {
            return Err(wrong("it is too long"));
        }
        let url = Url::parse(text).map_err(|_| wrong("it is no URL"))?;
        match url.scheme() {
            "https" | "http" if !url.username().is_empty() || url.password().is_some() => {
                Err(wrong("a password in it would be shown wherever the catalog is"))
            }
            "https" | "http" => Ok(Self::Web(url)),
            "file" => url.to_file_path().map(Self::File).map_err(|()| wrong("write `file:///` and an absolute path")),
            _ => Err(wrong("use https or file")),
        }
    }

    /// Refuses plain HTTP, but for the hosts that `insecure_registries` of the config names.
    ///
    /// # Errors
    /// When it is plain HTTP of another host.
    pub fn check(&self, insecure: &[String]) -> Result<(), DownloadError> {
        let Self::Web(url) = self else { return Ok(()) };
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        let authority = format!("{host}:{port}");
        let named = insecure.iter().any(|name| *name == authority || (port == 80 && name == host));
        if url.scheme() == "https" || named {
            return Ok(());
        }
        Err(DownloadError::Insecure { location: self.to_string(), authority })
    }

    /// The path of a file of this host.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Web(_) => None,
        }
    }
}

/// Without what follows the path: it may be a key.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(url) => f.write_str(url.as_str().split(['?', '#']).next().unwrap_or_default()),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

impl TryFrom<String> for Location {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).map_err(|error| error.to_string())
    }
}

impl From<Location> for String {
    fn from(location: Location) -> Self {
        match location {
            Location::Web(url) => url.into(),
            Location::File(path) => format!("file://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_three_kinds() {
        assert_eq!(Location::parse("https://x.example/a?key=1#b").unwrap().to_string(), "https://x.example/a");
        assert_eq!(Location::parse("file:///a/b%20c").unwrap(), Location::File("/a/b c".into()));
        for bad in ["a/b", "/a/b", "ftp://x/y", "https://", "file://host/x", "https://me:secret@x.example/", ""] {
            assert!(matches!(Location::parse(bad), Err(DownloadError::Address { .. })), "{bad}");
        }
        assert!(Location::parse(&format!("https://x.example/{}", "a".repeat(5000))).is_err());
    }

    #[test]
    fn plain_http_is_only_for_those_that_the_config_names() {
        let location = |text: &str| Location::parse(text).unwrap();
        let named = ["127.0.0.1:5000".to_owned(), "mirror.example".to_owned()];
        for good in ["https://x.example/a", "http://127.0.0.1:5000/a", "http://mirror.example/a", "file:///a"] {
            location(good).check(&named).unwrap();
        }
        for bad in ["http://127.0.0.1/a", "http://127.0.0.1:5001/a", "http://mirror.example:81/a"] {
            assert!(matches!(location(bad).check(&named), Err(DownloadError::Insecure { .. })), "{bad}");
        }
    }

    #[test]
    fn a_digest_is_one_or_refused() {
        let digits = "ab".repeat(32);
        for good in [digits.clone(), format!("sha256:{digits}")] {
            assert_eq!(Sha256Hex::try_from(good).unwrap().as_str(), digits);
        }
        for bad in ["", "ab", &digits.to_uppercase(), &format!("{digits}0"), &format!("sha512:{digits}")] {
            assert!(Sha256Hex::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
