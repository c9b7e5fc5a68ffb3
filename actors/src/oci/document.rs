//! What registries send as JSON: manifests, indexes, configs. Pure.

use messages::image::ImageConfig;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    OciManifest,
};
use serde::Deserialize;

/// What a manifest may be: docker's and OCI's, for one platform or for several.
const MANIFEST_TYPES: [&str; 4] =
    [IMAGE_MANIFEST_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE];

/// For the `Accept` header.
pub(super) fn manifest_types() -> String {
    MANIFEST_TYPES.join(", ")
}

/// What every manifest begins with.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versioned {
    schema_version: u32,
    media_type: Option<String>,
}

/// Reads a manifest, or an index of them.
///
/// # Errors
/// Why it is none.
pub(super) fn manifest(bytes: &[u8]) -> Result<OciManifest, String> {
    let versioned: Versioned = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if versioned.schema_version != 2 {
        return Err(format!("its schema has the version {}, not 2", versioned.schema_version));
    }
    match versioned.media_type {
        Some(kind) if !MANIFEST_TYPES.contains(&kind.as_str()) => {
            Err(format!("it is of type `{}`", kind.escape_debug().take(100).collect::<String>()))
        }
        Some(_) | None => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
    }
}

/// An image's config, as far as it is of use (OCI image specification, config.md).
#[derive(Debug, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    config: Option<Execution>,
}

impl ConfigFile {
    /// Reads one.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    pub(super) fn into_config(self) -> ImageConfig {
        self.config.unwrap_or_default().into()
    }
}

/// Every field may be absent, or null.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

impl From<Execution> for ImageConfig {
    fn from(execution: Execution) -> Self {
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            env: execution.env.unwrap_or_default(),
            entrypoint: execution.entrypoint.unwrap_or_default(),
            cmd: execution.cmd.unwrap_or_default(),
            workdir: said(execution.working_dir),
            user: said(execution.user),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:00","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:11","size":7,"annotations":{"a":"b"}}]}"#;
    const INDEX: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:22","size":3,"platform":{"architecture":"amd64","os":"linux"}}]}"#;
    const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Entrypoint":null,"Cmd":["sh"],"WorkingDir":"/","User":""},"rootfs":{"type":"layers","diff_ids":[]}}"#;

    #[test]
    fn what_it_is_decides_and_not_what_it_is_called() {
        assert!(matches!(manifest(MANIFEST.as_bytes()), Ok(OciManifest::Image(image)) if image.layers[0].size == 7));
        assert!(matches!(manifest(INDEX.as_bytes()), Ok(OciManifest::ImageIndex(index)) if index.manifests.len() == 1));
        let config = ConfigFile::read(CONFIG.as_bytes()).unwrap().into_config();
        assert_eq!((config.env, config.workdir, config.user), (vec!["A=b".to_owned()], Some("/".to_owned()), None));
        for (from, to, word) in [
            ("\"schemaVersion\":2", "\"schemaVersion\":1", "version 1"),
            ("image.manifest.v1+json", "artifact.v1\\u0007", "artifact"),
            ("\"layers\":[", "\"layers\":[[", "expected"),
            ("\"size\":7", "\"size\":99999999999999999999", "match"),
        ] {
            let error = manifest(MANIFEST.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(error.contains(word) && !error.contains('\u{7}'), "{error}");
        }
        let deep = format!("{{\"schemaVersion\":2,\"x\":{}1", "[".repeat(100_000));
        manifest(deep.as_bytes()).unwrap_err();
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn no_damage_is_a_panic(
            which in 0..3_usize,
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
            again in any::<prop::sample::Index>(),
        ) {
            let mut bytes = [MANIFEST, INDEX, CONFIG][which].as_bytes().to_vec();
            for (at, with) in flips {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            let middle = again.index(bytes.len())..bytes.len();
            let middle = bytes[middle].to_vec();
            let at = cut.index(bytes.len());
            let spliced = [&bytes[..at], &middle].concat();
            for bytes in [&bytes[..], &bytes[..at], &spliced] {
                // Either is fine: that it returns, and says something, is what counts.
                if let Err(why) = manifest(bytes) {
                    prop_assert!(!why.is_empty());
                }
                if let Ok(config) = ConfigFile::read(bytes) {
                    prop_assert!(config.into_config().cmd.len() <= bytes.len());
                }
            }
        }
    }
}
