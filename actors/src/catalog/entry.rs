//! The entries of a catalog and how a name finds one. Reads the user's catalogs, and writes nothing.

use super::remote::{self, Found, RemoteCatalogs};
use super::source::CatalogSource;
use crate::artifacts::NpmFile;
use crate::download::{DownloadError, Pinned};
use messages::ids::{ImageName, KernelCommandLine, KernelName};
use messages::image::ImageConfig;
use messages::{ErrorKind, WireError};
use serde::Deserialize;
use std::io;
use std::panic::resume_unwind;
use std::path::PathBuf;

/// The catalog that is part of the program.
const BUILT_IN: &str = include_str!("builtin.toml");
/// What `origin` says of an entry that nobody added.
const BUILT_IN_ORIGIN: &str = "built-in";
/// A suggestion must be at least this alike (Jaro-Winkler): below it, names that share nothing are offered.
const ALIKE: f64 = 0.7;
/// More than three suggestions are a list, and there is a command for lists.
const SUGGESTIONS_MAX: usize = 3;

/// Everything that can be pulled by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    #[serde(default, rename = "kernel")]
    kernels: Vec<KernelEntry>,
    #[serde(default, rename = "image")]
    images: Vec<ImageEntry>,
    /// The user's catalogs that could not be fetched, each with the reason.
    #[serde(skip)]
    absent: Vec<String>,
}

/// A kernel that can be pulled.
#[derive(Debug, Clone, Deserialize)]
pub struct KernelEntry {
    pub name: KernelName,
    pub description: String,
    /// What guests are booted with; the default one where absent.
    #[serde(default)]
    pub command_line: Option<KernelCommandLine>,
    #[serde(flatten)]
    pub source: KernelSource,
    /// The catalog that the entry is from; none for the built-in one.
    #[serde(skip)]
    pub origin: Option<String>,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum KernelSource {
    Debian(DebianKernel),
    /// A bundle of vmlinux, configuration and modules.
    Bundle(Pinned),
}

/// A kernel package of Debian's, unpacked on this host.
#[derive(Debug, Clone, Deserialize)]
pub struct DebianKernel {
    pub suite: String,
    /// The package, or a metapackage that depends on it.
    pub package: String,
}

/// An image that can be pulled.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageEntry {
    pub name: ImageName,
    pub description: String,
    /// The kernel that is pulled with it.
    pub kernel: KernelName,
    #[serde(flatten)]
    pub source: ImageSource,
    /// The catalog that the entry is from; none for the built-in one.
    #[serde(skip)]
    pub origin: Option<String>,
}

/// Where an image comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageSource {
    Debian(DebianImage),
    Oci(OciImage),
    /// What `banger image export` makes.
    Bundle(Pinned),
}

/// A container image of a registry.
#[derive(Debug, Clone, Deserialize)]
pub struct OciImage {
    /// As `docker pull` takes it.
    pub reference: String,
}

/// A Debian system, installed on this host from packages.
#[derive(Debug, Clone, Deserialize)]
pub struct DebianImage {
    pub suite: String,
    pub packages: Vec<String>,
    /// Directories that are left out of the image with all files below them, without a leading `/`.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Names of files that are kept all the same.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Run in the new system, by its own `/bin/sh -e`.
    #[serde(default)]
    pub scripts: Vec<String>,
    /// What Debian does not package.
    #[serde(default)]
    pub npm: Vec<NpmFile>,
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default)]
    pub cmd: Vec<String>,
}

impl DebianImage {
    /// True for a path, without a leading `/`, that is to be left out. A directory comes back with what is kept in it.
    #[must_use]
    pub fn excludes(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let below = |directory: &String| {
            path.strip_prefix(directory.as_bytes()).is_some_and(|rest| rest.len() > 1 && rest[0] == b'/')
        };
        self.exclude.iter().any(below) && !self.keep.iter().any(|kept| kept.as_bytes() == name)
    }

    /// How programs are run in it.
    #[must_use]
    pub fn config(&self) -> ImageConfig {
        ImageConfig { env: self.env.clone(), cmd: self.cmd.clone(), ..ImageConfig::default() }
    }
}

/// Why a name led nowhere.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the catalog has no {what} called `{name}`")]
    Unknown { what: &'static str, name: String, nearest: Vec<String>, absent: Vec<String> },
    #[error("the catalog cannot be read")]
    Malformed(#[source] toml::de::Error),
    #[error("failed to read the catalog `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the catalog `{}` is not one", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: toml::de::Error,
    },
    #[error(transparent)]
    Address(DownloadError),
}

impl From<&CatalogError> for WireError {
    fn from(error: &CatalogError) -> Self {
        match error {
            CatalogError::Address(cause) => Self::from(cause),
            CatalogError::Unknown { what, nearest, absent, .. } => {
                let mut wire = Self::from_error(ErrorKind::NotFound, error);
                wire.hints.extend(absent.iter().map(|absent| format!("it may be in {absent}")));
                let wire = match suggestion(nearest) {
                    Some(hint) => wire.hint(hint),
                    None => wire.hint(format!("`banger {what} catalog` lists what can be pulled")),
                };
                // A word alone could be an image of docker's hub, but the catalog's names come first.
                match error {
                    CatalogError::Unknown { what: "image", name, nearest, .. } if nearest.is_empty() => {
                        wire.hint(format!("for an image of docker's hub say `docker.io/library/{name}`"))
                    }
                    _ => wire,
                }
            }
            CatalogError::Malformed(_) | CatalogError::Read { .. } | CatalogError::File { .. } => {
                Self::from_error(ErrorKind::Usage, error)
                    .hint("`catalogs` in the config names the files; docs/image-catalog.md says what is in one")
            }
        }
    }
}

impl Catalog {
    /// The catalog that is part of the program.
    ///
    /// # Panics
    /// Never in a program whose tests ran: one of them reads it.
    #[must_use]
    pub fn built_in() -> Self {
        Self::parse(BUILT_IN).expect("the built-in catalog is valid: a test reads it")
    }

    /// Reads a catalog.
    ///
    /// # Errors
    /// When the text is not a catalog.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        toml::from_str(text).map_err(CatalogError::Malformed)
    }

    /// The built-in catalog with the user's own after it, in their order. An entry replaces an earlier one of its name. One on the
    /// web that cannot be fetched is its last copy, or left out: it keeps no daemon from starting. Blocks.
    ///
    /// # Errors
    /// When a file cannot be read or is not a catalog, or an address is plain HTTP that the config does not allow.
    pub fn load(sources: &[CatalogSource], remote: &RemoteCatalogs) -> Result<Self, CatalogError> {
        for source in sources {
            if let CatalogSource::Web(location) = source {
                remote::check(location, &remote.insecure)?;
            }
        }
        // Side by side: what one server takes longest is what the daemon's start waits for.
        let loaded: Vec<Result<Loaded, CatalogError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = sources.iter().map(|source| scope.spawn(|| one(source, remote))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        let mut catalog = Self::built_in();
        for loaded in loaded {
            match loaded? {
                Loaded::Catalog { added, origin } => catalog.add(added, &origin),
                Loaded::Absent(reason) => catalog.absent.push(reason),
            }
        }
        Ok(catalog)
    }

    fn add(&mut self, mut added: Self, origin: &str) {
        added.kernels.iter_mut().for_each(|entry| entry.origin = Some(origin.to_owned()));
        added.images.iter_mut().for_each(|entry| entry.origin = Some(origin.to_owned()));
        self.kernels.retain(|old| added.kernels.iter().all(|new| new.name != old.name));
        self.images.retain(|old| added.images.iter().all(|new| new.name != old.name));
        self.kernels.append(&mut added.kernels);
        self.images.append(&mut added.images);
    }

    /// The first entry whose bundle is a file of this host.
    pub(super) fn names_files(&self) -> Option<&str> {
        let kernels = self.kernels.iter().map(|entry| match &entry.source {
            KernelSource::Bundle(pinned) => (entry.name.as_str(), Some(pinned)),
            KernelSource::Debian(_) => (entry.name.as_str(), None),
        });
        let images = self.images.iter().map(|entry| match &entry.source {
            ImageSource::Bundle(pinned) => (entry.name.as_str(), Some(pinned)),
            ImageSource::Debian(_) | ImageSource::Oci(_) => (entry.name.as_str(), None),
        });
        let mut named = kernels.chain(images).filter(|(_, pinned)| pinned.is_some_and(|it| it.url.path().is_some()));
        named.next().map(|(name, _)| name)
    }

    /// The kernels, in the catalog's order.
    #[must_use]
    pub fn kernels(&self) -> &[KernelEntry] {
        &self.kernels
    }

    /// The images, in the catalog's order.
    #[must_use]
    pub fn images(&self) -> &[ImageEntry] {
        &self.images
    }

    /// Finds a kernel.
    ///
    /// # Errors
    /// When there is none of that name; the error carries the nearest ones.
    pub fn kernel(&self, name: &str) -> Result<&KernelEntry, CatalogError> {
        self.kernels.iter().find(|entry| entry.name.as_str() == name).ok_or_else(|| CatalogError::Unknown {
            what: "kernel",
            name: name.to_owned(),
            nearest: nearest(name, self.kernels.iter().map(|entry| entry.name.as_str())),
            absent: self.absent.clone(),
        })
    }

    /// Finds an image.
    ///
    /// # Errors
    /// When there is none of that name; the error carries the nearest ones.
    pub fn image(&self, name: &str) -> Result<&ImageEntry, CatalogError> {
        self.images.iter().find(|entry| entry.name.as_str() == name).ok_or_else(|| CatalogError::Unknown {
            what: "image",
            name: name.to_owned(),
            nearest: nearest(name, self.images.iter().map(|entry| entry.name.as_str())),
            absent: self.absent.clone(),
        })
    }
}

/// What came of one of the user's catalogs.
enum Loaded {
    Catalog { added: Catalog, origin: String },
    Absent(String),
}

fn one(source: &CatalogSource, remote: &RemoteCatalogs) -> Result<Loaded, CatalogError> {
    let path = match source {
        CatalogSource::File(path) => path,
        CatalogSource::Web(location) => {
            return Ok(match remote.load(location) {
                Found::Fresh(added) => Loaded::Catalog { added, origin: source.to_string() },
                Found::Copy(added, why) => Loaded::Catalog { added, origin: format!("{source} ({why})") },
                Found::Nothing(why) => Loaded::Absent(format!(
                    "the catalog `{source}`, which could not be fetched when the daemon started: {why}"
                )),
            });
        }
    };
    let text = std::fs::read_to_string(path).map_err(|source| CatalogError::Read { path: path.clone(), source })?;
    let added = toml::from_str(&text).map_err(|source| CatalogError::File { path: path.clone(), source })?;
    Ok(Loaded::Catalog { added, origin: source.to_string() })
}

impl KernelEntry {
    /// As it is told to a client.
    #[must_use]
    pub fn view(&self, present: bool) -> messages::image::CatalogEntry {
        let kind = match &self.source {
            KernelSource::Debian(_) => "debian",
            KernelSource::Bundle(_) => "bundle",
        };
        view(self.name.as_str(), kind, &self.description, present, self.origin.as_deref())
    }
}

impl ImageEntry {
    /// As it is told to a client.
    #[must_use]
    pub fn view(&self, present: bool) -> messages::image::CatalogEntry {
        let kind = match &self.source {
            ImageSource::Debian(_) => "debian",
            ImageSource::Oci(_) => "oci",
            ImageSource::Bundle(_) => "bundle",
        };
        view(self.name.as_str(), kind, &self.description, present, self.origin.as_deref())
    }
}

fn view(
    name: &str,
    kind: &str,
    description: &str,
    present: bool,
    origin: Option<&str>,
) -> messages::image::CatalogEntry {
    messages::image::CatalogEntry {
        name: name.to_owned(),
        kind: kind.to_owned(),
        description: description.to_owned(),
        present,
        origin: origin.unwrap_or(BUILT_IN_ORIGIN).to_owned(),
    }
}

/// The names most like `asked`, best first.
#[must_use]
pub fn nearest<'a>(asked: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(asked, name), name))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(SUGGESTIONS_MAX).map(|(_, name)| name.to_owned()).collect()
}

/// The hint that offers these names; none for none.
#[must_use]
pub fn suggestion(nearest: &[String]) -> Option<String> {
    let quoted: Vec<String> = nearest.iter().map(|name| format!("`{name}`")).collect();
    (!quoted.is_empty()).then(|| format!("did you mean {}?", quoted.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalog_is_whole() {
        let catalog = Catalog::built_in();
        for image in catalog.images() {
            catalog.kernel(image.kernel.as_str()).unwrap();
        }
        let KernelSource::Debian(kernel) = &catalog.kernel("debian-cloud-6.12").unwrap().source else { panic!() };
        assert_eq!((kernel.suite.as_str(), kernel.package.as_str()), ("trixie", "linux-image-cloud-amd64"));
        let ImageSource::Debian(image) = &catalog.image("debian-bookworm").unwrap().source else { panic!() };
        assert!(image.packages.iter().any(|package| package == "systemd-sysv"));
    }

    #[test]
    fn manuals_are_left_out_and_licences_are_not() {
        let catalog = Catalog::built_in();
        let ImageSource::Debian(image) = &catalog.image("debian-bookworm").unwrap().source else { panic!() };
        assert!(image.excludes(b"usr/share/man/man1/ls.1.gz"));
        assert!(image.excludes(b"usr/share/doc/bash/README"));
        for kept in
            ["usr/share/doc/bash/copyright", "usr/share/doc", "usr/share/manners/x", "usr/share/locale/locale.alias"]
        {
            assert!(!image.excludes(kept.as_bytes()), "{kept}");
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let catalog = Catalog::built_in();
        let error = WireError::from(&catalog.image("debian-bokworm").unwrap_err());
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.hints, ["did you mean `debian-bookworm` or `debian-trixie`?"]);
        let error = WireError::from(&catalog.kernel("xyzzy").unwrap_err());
        assert_eq!(error.hints, ["`banger kernel catalog` lists what can be pulled"]);
    }

    #[test]
    fn a_users_own_entries_come_with_the_built_in_ones_and_before_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mine.toml");
        let entry = |name: &str| {
            format!(
                "[[image]]\nname = \"{name}\"\ndescription = \"mine\"\nkernel = \"debian-cloud-6.12\"\nkind = \"debian\"\n\
                 suite = \"sid\"\npackages = [\"systemd-sysv\"]\n"
            )
        };
        std::fs::write(&path, entry("debian-bookworm") + &entry("mine")).unwrap();
        let remote = RemoteCatalogs { copies: directory.path().join("copies"), insecure: Vec::new() };
        let load = |path: &std::path::Path| Catalog::load(&[CatalogSource::File(path.to_owned())], &remote);
        let catalog = load(&path).unwrap();
        for name in ["debian-bookworm", "mine"] {
            let view = catalog.image(name).unwrap().view(false);
            assert_eq!((view.description.as_str(), view.origin), ("mine", path.display().to_string()));
        }
        assert_eq!(catalog.images().iter().filter(|image| image.name.as_str() == "debian-bookworm").count(), 1);
        assert_eq!(catalog.image("debian-trixie").unwrap().view(true).origin, "built-in");

        std::fs::write(&path, "[[image]]\nname = 1").unwrap();
        let error = WireError::from(&load(&path).unwrap_err());
        assert!(error.kind == ErrorKind::Usage && error.to_string().contains("mine.toml"), "{error}");
        let gone = WireError::from(&load(&directory.path().join("gone")).unwrap_err());
        assert!(gone.to_string().contains("gone"), "{gone}");
    }

    #[test]
    fn bundles_are_pinned_and_kernels_may_have_a_command_line() {
        let pinned = format!("url = \"https://x.example/b\"\nsha256 = \"{}\"\n", "ab".repeat(32));
        let kernel = format!(
            "[[kernel]]\nname = \"k\"\ndescription = \"d\"\nkind = \"bundle\"\ncommand_line = \"quiet\"\n{pinned}"
        );
        let image =
            format!("[[image]]\nname = \"i\"\ndescription = \"d\"\nkernel = \"k\"\nkind = \"bundle\"\n{pinned}");
        let catalog = Catalog::parse(&format!("{kernel}{image}")).unwrap();
        let entry = catalog.kernel("k").unwrap();
        assert_eq!(entry.command_line.as_ref().map(KernelCommandLine::as_str), Some("quiet"));
        assert_eq!(
            (entry.view(false).kind.as_str(), catalog.image("i").unwrap().view(true).kind.as_str()),
            ("bundle", "bundle")
        );
        assert_eq!(catalog.names_files(), None);
        let of_this_host = image.replace("https://x.example", "file:///x");
        assert_eq!(Catalog::parse(&of_this_host).unwrap().names_files(), Some("i"));
        for (old, new) in
            [("sha256", "sha512"), ("abab", "ABAB"), ("https:", "ftp:"), ("quiet", "a\\nb"), ("url", "uri")]
        {
            assert!(Catalog::parse(&kernel.replace(old, new)).is_err(), "{new}");
        }
    }

    #[test]
    fn unknown_fields_and_bad_names_are_refused() {
        for bad in [
            "[[kernel]]\nname = \"../etc\"\ndescription = \"\"\nkind = \"debian\"\nsuite = \"x\"\npackage = \"y\"",
            "[[kernel]]\nname = \"a\"\ndescription = \"\"\nkind = \"wishes\"\nsuite = \"x\"\npackage = \"y\"",
            "colour = 1",
        ] {
            assert!(Catalog::parse(bad).is_err(), "{bad}");
        }
    }
}
