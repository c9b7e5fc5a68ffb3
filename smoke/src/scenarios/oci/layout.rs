//! An OCI image layout on disk, as image-layout.md of the specification has it: what skopeo and umoci read.

use super::layers::Layer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One image, with the tag `1`.
pub(crate) struct Layout(PathBuf);

impl Layout {
    pub(crate) fn write(path: &Path, layers: &[Layer], config: &Value) -> io::Result<Self> {
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let put = |kind: &str, bytes: &[u8]| -> io::Result<Value> {
            let digest = hex::encode(Sha256::digest(bytes));
            fs::write(blobs.join(&digest), bytes)?;
            Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
        };
        let described = layers
            .iter()
            .map(|layer| put(&format!("application/vnd.oci.image.layer.v1.tar{}", layer.suffix), &layer.packed))
            .collect::<io::Result<Vec<_>>>()?;
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| format!("sha256:{}", hex::encode(Sha256::digest(&layer.archive)))).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?,
            "layers": described,
        });
        let mut entry = put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())?;
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
        fs::write(path.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string())?;
        fs::write(path.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}
