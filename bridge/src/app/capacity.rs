//! What the process may open and hold, so that the limits of everything else follow from it.
//!
//! A process that runs out of descriptors can neither take nor dial nor write a journal, and calls that were taken end for
//! it. So it is reckoned at the start what all calls together may hold; what is left is for connections that are no calls.

use crate::app::config::Config;
use crate::export::metrics;
use crate::server::live;

/// Descriptors a call may hold: its two sockets, its journal, and a request of one of its functions or to Twilio.
const PER_CALL: u64 = 4;
/// What the process holds besides: its listeners, its own pipes, the store, the log, a collector.
const OWN: u64 = 64;
/// Fewer connections than this cannot bring in calls.
const CONNECTIONS_LEAST: u64 = 16;
/// What a call holds in memory when it goes as it should, bytes, by a generous estimate.
const CALL_BYTES: u64 = 1024 * 1024;

/// Asks for as many descriptors as the process may have, and makes the limits of `config` fit what it gets and has.
///
/// # Errors
/// When the calls that may be taken would not have enough.
pub fn fit(config: &mut Config) -> anyhow::Result<()> {
    let descriptors = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files is not known, and nothing is fitted to it");
            return Ok(());
        }
    };
    let most = connections_within(descriptors, config).map_err(anyhow::Error::msg)?;
    if most < config.connections.max {
        tracing::warn!(
            descriptors,
            asked = config.connections.max,
            connections = most,
            "connections.max does not fit the limit of open files, and is lowered"
        );
        config.connections.max = most;
    }
    if let Some(memory) = memory()
        && let Some(words) = too_little(memory, config)
    {
        tracing::warn!("{words}");
    }
    tracing::debug!(descriptors, connections = most, "the limits fit");
    Ok(())
}

/// How many connections that are no calls there may be when all lines are taken.
fn connections_within(descriptors: u64, config: &Config) -> Result<usize, String> {
    let live = if config.live.enabled { live::CONNECTIONS_MAX } else { 0 };
    let figures = config.metrics.enabled && config.metrics.listen != config.listen;
    let figures = if figures { metrics::CONNECTIONS_MAX } else { 0 };
    let calls = (config.max_calls as u64).saturating_mul(PER_CALL);
    let taken = calls.saturating_add(OWN + (live + figures) as u64);
    let left = descriptors.saturating_sub(taken);
    if left < CONNECTIONS_LEAST {
        return Err(format!(
            "max_calls = {} may need {} open files, and this process may have {descriptors}: raise the limit (LimitNOFILE \
             of the systemd unit, ulimit -n), or take fewer calls",
            config.max_calls,
            taken.saturating_add(CONNECTIONS_LEAST)
        ));
    }
    Ok(config.connections.max.min(usize::try_from(left).unwrap_or(usize::MAX)))
}

/// What is said when all lines together could need more memory than there is.
fn too_little(memory: u64, config: &Config) -> Option<String> {
    let queued = if config.store.url.expose().is_empty() { 0 } else { config.store.queue_bytes as u64 };
    let needed = (config.max_calls as u64).saturating_mul(CALL_BYTES).saturating_add(queued);
    (needed > memory).then(|| {
        let mb = |bytes: u64| bytes.div_ceil(1024 * 1024);
        format!(
            "max_calls = {} and store.queue_bytes may need {} MB of memory, and there are {}: take fewer calls, or give more",
            config.max_calls,
            mb(needed),
            mb(memory)
        )
    })
}

/// The memory this process may use: its container's, its own limit, or the machine's; what of it is known.
fn memory() -> Option<u64> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let machine = std::fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(total);
    let own = rlimit::Resource::AS.get_soft().ok().filter(|limit| *limit != rlimit::INFINITY);
    let container = number("/sys/fs/cgroup/memory.max");
    let older = number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    [machine, own, container, older].into_iter().flatten().min()
}

/// `MemTotal` of `/proc/meminfo`, bytes.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_calls_may_need_is_kept_for_them_and_the_rest_is_for_connections() {
        let config = Config::default();
        let own = (live::CONNECTIONS_MAX + metrics::CONNECTIONS_MAX) as u64;
        let calls = config.max_calls as u64 * PER_CALL;
        assert_eq!(connections_within(u64::MAX, &config), Ok(1_024), "as was asked");
        assert_eq!(connections_within(OWN + own + calls + 100, &config), Ok(100));
        let error = connections_within(1_024, &Config { max_calls: 1_000, ..config.clone() }).unwrap_err();
        assert!(
            error.starts_with("max_calls = 1000 may need 4272 open files, and this process may have 1024"),
            "{error}"
        );
        let mut alone = config;
        (alone.live.enabled, alone.metrics.enabled) = (false, false);
        assert_eq!(connections_within(OWN + calls + 20, &alone), Ok(20));
    }

    #[test]
    fn memory_that_does_not_suffice_for_all_lines_is_said_so() {
        let config = Config { max_calls: 100, ..Config::default() };
        assert_eq!(too_little(1 << 30, &config), None);
        let words = too_little(128 << 20, &config).unwrap();
        assert!(words.contains("may need 164 MB of memory, and there are 128"), "{words}");
        assert_eq!(total("MemTotal:       24000000 kB\nMemFree: 1 kB\n"), Some(24_576_000_000));
        assert!(memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
