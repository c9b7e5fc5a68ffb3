//! What users call an image: `[REGISTRY[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, as docker reads it. Pure.

use super::OciError;
use messages::ids::ImageName;
use oci_client::Reference;
use sha2::{Digest as _, Sha256};

/// The longest image name, in bytes.
const NAME_MAX: usize = 128;

/// True for what cannot be a name of the catalog's, and so must be a reference.
#[must_use]
pub fn is_reference(text: &str) -> bool {
    text.contains(['/', ':', '@'])
}

/// Reads one; docker.io and `latest` are meant where nothing is said.
///
/// # Errors
/// [`OciError::Reference`].
pub fn parse(text: &str) -> Result<Reference, OciError> {
    let wrong = |why: String| OciError::Reference { text: text.to_owned(), why };
    let reference: Reference = text.parse().map_err(|error| wrong(format!("{error}")))?;
    match reference.digest() {
        Some(digest) if !is_sha256(digest) => {
            Err(wrong("its digest must be `sha256:` and 64 hexadecimal digits".to_owned()))
        }
        _ => Ok(reference),
    }
}

/// True for a digest that we can verify.
#[must_use]
pub fn is_sha256(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

/// The reference with everything said: one text for every way of writing it.
#[must_use]
pub fn canonical(reference: &Reference) -> String {
    reference.whole()
}

/// The name that an image gets on this host: `alpine-3.20` for `docker.io/library/alpine:3.20`.
#[must_use]
pub fn image_name(reference: &Reference) -> ImageName {
    let repository = reference.repository().rsplit('/').next().unwrap_or_default();
    let version = match (reference.tag(), reference.digest()) {
        (Some(tag), _) => tag.to_ascii_lowercase(),
        (None, Some(digest)) => digest.trim_start_matches("sha256:").chars().take(12).collect(),
        (None, None) => "latest".to_owned(),
    };
    let mut name = format!("{repository}-{version}");
    name.truncate(NAME_MAX);
    name.parse().unwrap_or_else(|_| distinct("image", &canonical(reference)))
}

/// A name that nothing else has got: `name` with eight digits that stand for `what`.
#[must_use]
pub fn distinct(name: &str, what: &str) -> ImageName {
    let digits = hex::encode(&Sha256::digest(what)[..4]);
    let kept: String = name.chars().take(NAME_MAX - 1 - digits.len()).collect();
    format!("{kept}-{digits}").parse().expect("a name with a hyphen and digits after it is a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_writing_it_is_the_same_reference() {
        for (text, whole, name) in [
            ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine-3.20"),
            ("docker.io/library/alpine:3.20", "docker.io/library/alpine:3.20", "alpine-3.20"),
            ("docker.io/alpine:3.20", "docker.io/library/alpine:3.20", "alpine-3.20"),
            ("index.docker.io/library/alpine:3.20", "docker.io/library/alpine:3.20", "alpine-3.20"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest", "grafana-latest"),
            ("localhost:5000/x", "localhost:5000/x:latest", "x-latest"),
            ("127.0.0.1:5000/a/b_c/d__e:V1.0_X", "127.0.0.1:5000/a/b_c/d__e:V1.0_X", "d__e-v1.0_x"),
        ] {
            let reference = parse(text).unwrap();
            assert_eq!((canonical(&reference).as_str(), image_name(&reference).as_str()), (whole, name), "{text}");
        }
        let digest = format!("sha256:{}", "ab".repeat(32));
        let reference = parse(&format!("ghcr.io/owner/app@{digest}")).unwrap();
        assert_eq!(reference.digest(), Some(digest.as_str()));
        assert_eq!(image_name(&reference).as_str(), "app-abababababab");
        let both = parse(&format!("ghcr.io/owner/app:1@{digest}")).unwrap();
        assert_eq!((both.tag(), both.digest()), (Some("1"), Some(digest.as_str())));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "/x:1",
            "x/UPPER:1",
            "x/:1",
            "a:b:c",
            "x@sha256:12",
            "x@md5:00",
            "x:",
            &format!("x@sha512:{}", "ab".repeat(64)),
        ] {
            let Err(OciError::Reference { text, .. }) = parse(bad) else { panic!("{bad} was taken") };
            assert_eq!(text, bad);
        }
    }

    #[test]
    fn catalog_names_are_no_references() {
        assert!(!is_reference("debian-bookworm") && !is_reference("my.image_1"));
        assert!(is_reference("alpine:3") && is_reference("a/b") && is_reference("a@sha256:00"));
    }

    #[test]
    fn a_distinct_name_is_a_name_however_long() {
        assert_eq!(distinct("alpine-3.20", "sha256:00").as_str().len(), "alpine-3.20-12345678".len());
        assert_eq!(distinct(&"x".repeat(200), "y").as_str().len(), NAME_MAX);
    }
}
