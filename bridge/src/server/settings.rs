//! What a server needs to know of the settings of the process.

use crate::auth::stream_auth;
use crate::base::secret::Secret;
use crate::base::url::PublicUrl;
use crate::call::settings::CallConfig;
use crate::net::dial::ModelEndpoint;
use crate::runtime::journal::CallBeginning;
use crate::server::connections;
use crate::server::stats::CallLimits;
use std::sync::Arc;
use std::time::Duration;

/// The settings of a server; [`crate::app::config::Config`] says what each of them means.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is described where it is read from a file")]
pub struct Settings {
    pub public_url: Option<PublicUrl>,
    pub limits: CallLimits,
    pub drain_ms: u64,
    pub twilio: stream_auth::Settings,
    pub operator_token: Secret,
    pub connections: connections::Settings,
    pub model: Arc<ModelEndpoint>,
    pub call: Arc<CallConfig>,
    pub notice: Arc<[u8]>,
}

impl Settings {
    /// What the journal of a call begins with. `key`, `unix` and `up` are those of [`CallBeginning`].
    pub fn beginning(&self, key: u64, unix: i64, up: Duration) -> CallBeginning {
        CallBeginning {
            key,
            unix,
            up,
            max_calls: self.limits.max_calls,
            drain_ms: self.drain_ms,
            notice_bytes: self.notice.len(),
            call: self.call.clone(),
        }
    }
}
