//! `scn`: plays scenarios and judges them. See [`scenarios::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    scenarios::cli::main()
}
