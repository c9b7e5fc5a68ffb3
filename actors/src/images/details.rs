//! Everything that can be said about an image, and what it has in common with the others of this host.

use super::{ImageError, ImageRecord, ImageStore};
use crate::oci::BlobCache;
use messages::image::{ImageDetails, LayerView};

/// Gathers it. Blocks.
///
/// # Errors
/// When the images cannot be listed.
pub fn details(store: &ImageStore, blobs: &BlobCache, record: &ImageRecord) -> Result<ImageDetails, ImageError> {
    let others: Vec<ImageRecord> =
        store.list()?.into_iter().filter(|other| other.name != record.name && !other.layers.is_empty()).collect();
    let layers: Vec<LayerView> = record
        .layers
        .iter()
        .map(|digest| LayerView {
            digest: digest.clone(),
            bytes: blobs.size(digest),
            shared_with: others.iter().filter(|it| it.layers.contains(digest)).map(|it| it.name.clone()).collect(),
        })
        .collect();
    let sum = |shared: bool| {
        // A layer may be there twice, the empty one for example; it is kept once.
        let mut counted: Vec<&LayerView> =
            layers.iter().filter(|layer| layer.shared_with.is_empty() != shared).collect();
        counted.sort_by(|one, other| one.digest.cmp(&other.digest));
        counted.dedup_by(|one, other| one.digest == other.digest);
        counted.iter().filter_map(|layer| layer.bytes).sum()
    };
    let (shared_bytes, own_bytes) = (sum(true), sum(false));
    Ok(ImageDetails {
        image: store.view(record, Vec::new())?,
        pulled_digest: record.pulled_digest.clone(),
        parent: record.parent.clone(),
        external: record.external.as_ref().map(|external| external.path.display().to_string()),
        layers,
        shared_bytes,
        own_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::Staging;
    use messages::image::ImageConfig;

    fn image(store: &ImageStore, name: &str, layers: &[&str]) -> ImageRecord {
        let record = ImageRecord {
            name: name.parse().unwrap(),
            digest: "sha256:00".into(),
            size_bytes: 1,
            uuid: uuid::Uuid::nil(),
            kernel: "k".parse().unwrap(),
            source: "test".into(),
            created_at_ms: 1,
            config: ImageConfig::default(),
            pulled_digest: None,
            layers: layers.iter().map(|layer| format!("sha256:{}", layer.repeat(64))).collect(),
            parent: None,
            external: None,
        };
        store.publish(Staging::create(store.directory(), name).unwrap(), &record).unwrap();
        record
    }

    #[test]
    fn shared_layers_are_counted_apart_and_each_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::new(directory.path().join("images"));
        let blobs = directory.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        for (layer, bytes) in [("a", 10), ("b", 200)] {
            std::fs::write(blobs.join(layer.repeat(64)), vec![0; bytes]).unwrap();
        }
        let record = image(&store, "one", &["a", "a", "b", "c"]);
        image(&store, "two", &["a"]);
        let details = details(&store, &BlobCache::new(&blobs, None), &record).unwrap();
        assert_eq!((details.shared_bytes, details.own_bytes), (10, 200));
        assert_eq!(details.layers.len(), 4);
        assert_eq!(details.layers[0].shared_with, ["two".parse().unwrap()]);
        assert_eq!((details.layers[3].bytes, details.layers[3].shared_with.len()), (None, 0));
    }
}
