//! Where a user's catalog is: a file of this host, or an address of the web. Pure.

use crate::download::Location;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// One of `catalogs` in the config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CatalogSource {
    File(PathBuf),
    Web(Location),
}

impl TryFrom<String> for CatalogSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if !text.contains("://") {
            let path = PathBuf::from(&text);
            // A relative path would mean another file for each directory that the daemon is started from.
            return if path.is_absolute() { Ok(Self::File(path)) } else { Err(format!("`{text}` must be absolute")) };
        }
        match Location::parse(&text).map_err(|error| error.to_string())? {
            Location::File(path) => Ok(Self::File(path)),
            location @ Location::Web(_) => Ok(Self::Web(location)),
        }
    }
}

impl From<CatalogSource> for String {
    fn from(source: CatalogSource) -> Self {
        match source {
            CatalogSource::File(path) => path.display().to_string(),
            CatalogSource::Web(location) => location.into(),
        }
    }
}

impl fmt::Display for CatalogSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Web(location) => location.fmt(f),
        }
    }
}
