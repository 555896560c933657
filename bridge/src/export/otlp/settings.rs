//! Where traces and logs go.

use crate::base::secret::Secret;
use crate::base::url::{Url, serialize_url_if_any, shown_url};
use axum::http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whether traces and logs are sent to a collector, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The collector, such as `http://localhost:4318`. Nothing is sent without it.
    #[serde(serialize_with = "serialize_url_if_any")]
    pub endpoint: Option<String>,
    /// Sent with every request: a collector's key, mostly.
    pub headers: BTreeMap<String, Secret>,
    /// What this bridge is called there.
    pub service: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { endpoint: None, headers: BTreeMap::new(), service: "bridge".into() }
    }
}

impl Settings {
    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        if let Some(endpoint) = &self.endpoint {
            let url = Url::parse(endpoint).filter(|url| ["http", "https"].contains(&url.scheme.as_str()));
            if url.is_none() || endpoint.contains('?') {
                return Some(format!(
                    "otlp.endpoint = {:?}: an address such as http://localhost:4318",
                    shown_url(endpoint)
                ));
            }
        }
        for (name, value) in &self.headers {
            let (name_is_one, value) = (HeaderName::try_from(name).is_ok(), value.expose());
            if !name_is_one || HeaderValue::try_from(value).is_err() || value == "***" {
                return Some(format!("otlp.headers: {name:?} is no header, or its value is none"));
            }
        }
        None
    }
}
