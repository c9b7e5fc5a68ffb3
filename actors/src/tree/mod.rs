//! Who starts whom. The only place that knows every actor; the order of starting is the order of the lines here, and the
//! order of stopping is the reverse.

mod boots;
mod ports;
mod sources;
mod sweep;
mod taps;

pub use sources::{ArtifactSource, TapSource};

use crate::artifacts::ArtifactLibrary;
use crate::catalog::{Catalog, CatalogError, RemoteCatalogs};
use crate::config::{Config, Loaded};
use crate::download::Downloads;
use crate::ext4::files::Ext4Files;
use crate::host::HostFacts;
use crate::images::{ImageError, ImageStore, Images, ImagesConfig, Registries};
use crate::kernels::{GuestLink, KernelError, KernelStore, Kernels, KernelsConfig};
use crate::network::SettingsError;
use crate::oci::credentials::docker_directory;
use crate::oci::{Access, BlobCache};
use crate::paths::Paths;
use crate::registry::{Registry, RegistryContext, keep_clocks};
use crate::server::{DaemonFacts, ServerContext};
use crate::ssh::KeyPlace;
use crate::store::{Store, StoreError};
use crate::vm::VmContext;
use crate::vmm::choose::{Candidates, ChooseError, VmmChoice, VmmKind, choose};
use actix::Supervisor;
use futures::future::BoxFuture;
use messages::error::{ErrorKind, WireError};
use messages::reply::NamesView;
use ports::HostPorts;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use taps::PoolTaps;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Says why the tree could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("failed to open the store")]
    Store(#[from] StoreError),
    #[error("no VMM can be used")]
    Vmm(#[from] ChooseError),
    #[error("the program `{0}` is not beside bangerd")]
    Program(&'static str),
    #[error("failed to look at this host")]
    Host(#[source] std::io::Error),
    #[error("the config's network cannot be")]
    Network(#[from] SettingsError),
    #[error("failed to look at the images")]
    Images(#[from] ImageError),
    #[error("the config's catalogs cannot be used")]
    Catalog(#[from] CatalogError),
    #[error("failed to look at the kernels")]
    Kernels(#[from] KernelError),
    #[error("failed to make `{}`", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl From<&TreeError> for WireError {
    fn from(error: &TreeError) -> Self {
        let wire = Self::from_error(ErrorKind::Host, error);
        match error {
            TreeError::Program(_) => wire.hint("install it next to `bangerd`, or name its directory in BANGER_LIBEXEC"),
            TreeError::Vmm(_) => wire.hint("`banger doctor` tells what is missing"),
            TreeError::Network(_) | TreeError::Catalog(_) => Self::from_error(ErrorKind::Usage, error),
            TreeError::Store(_)
            | TreeError::Host(_)
            | TreeError::Images(_)
            | TreeError::Kernels(_)
            | TreeError::Directory { .. } => wire,
        }
    }
}

/// What the daemon says of its VMM and helper.
#[derive(Debug)]
struct Facts {
    vmm: VmmChoice,
    taps: PoolTaps,
}

impl DaemonFacts for Facts {
    fn vmm(&self) -> String {
        let kind = match self.vmm.kind {
            VmmKind::Firecracker => "firecracker",
            VmmKind::Emulated => "emulated",
        };
        format!("{kind}: {}", self.vmm.why)
    }

    fn helper(&self) -> BoxFuture<'static, Result<String, String>> {
        self.taps.helper()
    }

    fn dns(&self) -> NamesView {
        self.taps.dns()
    }
}

/// Starts the actors of images and kernels. They sweep their directories first, which blocks.
async fn start_artifacts(
    paths: &Paths,
    config: &Config,
    agent: PathBuf,
    link: GuestLink,
    runtime: Handle,
) -> Result<ArtifactLibrary, TreeError> {
    let (image_store, kernel_store) = (ImageStore::new(paths.images_dir()), KernelStore::new(paths.kernels_dir()));
    let (sources, insecure) = (config.catalogs.clone(), config.insecure_registries.clone());
    let remote = RemoteCatalogs { copies: paths.catalogs_dir(), insecure: insecure.clone() };
    let catalog = runtime.spawn_blocking(move || Catalog::load(&sources, &remote)).await;
    let catalog = Arc::new(catalog.map_err(|error| TreeError::Host(std::io::Error::other(error)))??);
    let mirror = config.debian_mirror.clone();
    let blobs = BlobCache::new(paths.blobs_dir(), config.cache_max_size);
    let downloads = Downloads { blobs: blobs.clone(), insecure };
    let images = ImagesConfig {
        store: image_store.clone(),
        catalog: Arc::clone(&catalog),
        mirror: mirror.clone(),
        registries: Registries {
            access: Access::new(config.insecure_registries.clone(), docker_directory()),
            blobs,
            kernel: config.default_kernel.clone(),
        },
        downloads: downloads.clone(),
        runtime: runtime.clone(),
    };
    let kernels = KernelsConfig {
        store: kernel_store,
        images: image_store,
        catalog,
        mirror,
        downloads,
        link,
        agent,
        runtime: runtime.clone(),
    };
    let built = runtime.spawn_blocking(move || Ok::<_, TreeError>((Images::new(images)?, Kernels::new(kernels)?)));
    let (images, kernels) = built.await.map_err(|error| TreeError::Host(std::io::Error::other(error)))??;
    Ok(ArtifactLibrary { images: Supervisor::start(move |_| images), kernels: Supervisor::start(move |_| kernels) })
}

/// Starts every actor, reconciles what an earlier daemon left, and gives what the server needs. Runs on the actors' thread.
///
/// # Errors
/// [`TreeError`].
pub async fn start(
    paths: Arc<Paths>,
    loaded: Loaded,
    runtime: Handle,
    shutdown: CancellationToken,
) -> Result<ServerContext, TreeError> {
    let config = Arc::new(loaded.config.clone());
    let host = HostFacts::probe().map_err(TreeError::Host)?;
    for dir in [paths.vms_dir(), paths.cache_dir.clone(), paths.blobs_dir()] {
        std::fs::create_dir_all(&dir).map_err(|source| TreeError::Directory { path: dir.clone(), source })?;
    }
    let agent = paths.helper_program("banger-agent").ok_or(TreeError::Program("banger-agent"))?;
    let emulator = paths.helper_program("banger-emu").ok_or(TreeError::Program("banger-emu"))?;
    let candidates = Candidates {
        setting: config.vmm,
        firecracker_bin: config.firecracker_bin.clone(),
        emulator,
        cache_dir: paths.cache_dir.clone(),
    };
    let vmm = choose(candidates).await?;
    tracing::info!(binary = %vmm.binary.display(), why = vmm.why, "VMM");

    let store = Store::open(&paths.database())?;
    let records = store.all().await?;
    let known: Vec<_> = records.iter().map(|record| record.id).collect();
    sweep::vm_dirs(&paths, &known).await;

    let link = match vmm.kind {
        VmmKind::Firecracker => GuestLink::Vsock,
        VmmKind::Emulated => GuestLink::SerialPort,
    };
    let library = start_artifacts(&paths, &config, agent, link, runtime.clone()).await?;
    for record in &records {
        let name = record.name.to_string();
        library.note_user(record.id, name, record.image.clone(), record.kernel.clone()).await;
    }
    let taps = PoolTaps::start(&paths, &loaded, &records, runtime.clone())?;
    let ports = Arc::new(HostPorts {
        paths: Arc::clone(&paths),
        vmm: vmm.binary.clone(),
        artifacts: Arc::new(library.clone()),
        taps: Arc::new(taps.clone()),
        ssh_key: KeyPlace::new(&config, &paths),
    });
    let files_runtime = runtime.clone();
    let disk_files = Supervisor::start(move |_| Ext4Files::new(files_runtime));
    let host_restarted = boots::host_restarted(&paths, &records);
    let vm = VmContext { ports: ports.clone(), store: store.clone(), runtime, host_restarted };
    let context = RegistryContext { vm, host, names: Some(taps.names()) };
    let registry = Supervisor::start(move |_| Registry::new(context, records));
    keep_clocks(registry.clone(), &Handle::current());

    Ok(ServerContext {
        registry,
        library: Arc::new(library),
        ports,
        facts: Arc::new(Facts { vmm, taps }),
        store,
        disk_files,
        config,
        paths,
        host,
        started: Instant::now(),
        shutdown,
    })
}
