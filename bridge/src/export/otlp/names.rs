//! What OpenTelemetry's conventions call things.

/// Names this revision of the conventions.
pub const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";
/// `chat` for a response, `execute_tool` for a function.
pub const OPERATION: &str = "gen_ai.operation.name";
/// `openai`.
pub const PROVIDER: &str = "gen_ai.provider.name";
/// The model that was asked for.
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
/// The session.
pub const CONVERSATION: &str = "gen_ai.conversation.id";
/// `speech`.
pub const OUTPUT_TYPE: &str = "gen_ai.output.type";
/// The response.
pub const RESPONSE: &str = "gen_ai.response.id";
/// Its status.
pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// Tokens read.
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Tokens written.
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// The function.
pub const TOOL: &str = "gen_ai.tool.name";
/// Its call.
pub const TOOL_CALL: &str = "gen_ai.tool.call.id";
/// What went wrong, in one word.
pub const ERROR: &str = "error.type";
