//! Who runs the functions the model calls. Runs beside the audio; nothing waits for it.

/// Runs functions.
pub trait Tools: Clone + Send + Sync + 'static {
    /// Runs one with a JSON object as arguments; `call_id` is what the model calls this run. An error is told to the
    /// model in the words given. Dropped when the call no longer waits for it.
    fn run(
        &self,
        call_sid: &str,
        call_id: &str,
        name: &str,
        arguments: &str,
    ) -> impl Future<Output = Result<String, String>> + Send;
}

/// Runs none: every call is answered with words the model can speak about.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTools;

impl Tools for NoTools {
    async fn run(
        &self,
        _call_sid: &str,
        _call_id: &str,
        name: &str,
        _arguments: &str,
    ) -> Result<String, String> {
        Err(format!("the function {name} is not available on this line"))
    }
}
