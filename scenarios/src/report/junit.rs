//! JUnit XML, as CI systems read it: a suite for each backend, a case for each run.

use super::runs::{Report, Run};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use std::time::Duration;

/// The file. Its times are simulated seconds, so the same runs give the same bytes.
pub(crate) fn text(report: &Report) -> anyhow::Result<String> {
    let mut file = quick_junit::Report::new("scn");
    for (backend, total) in report.backends() {
        let mut suite = TestSuite::new(backend.name());
        suite.set_time(Duration::from_millis(total.call_ms));
        for run in report.runs().iter().filter(|run| run.outcome.backend == *backend) {
            suite.add_test_case(case(run));
        }
        let rest = total.runs - report.runs().iter().filter(|run| run.outcome.backend == *backend).count();
        if rest > 0 {
            // One case for all that are not listed: those that passed, and failures beyond the limit of a report.
            let failed = total.failed() - suite.failures;
            let mut status = TestCaseStatus::success();
            if failed > 0 {
                status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(format!(
                    "{failed} of these failed; only the first failures are listed one by one"
                ));
            }
            suite.add_test_case(TestCase::new(format!("{rest} more runs"), status));
        }
        file.add_test_suite(suite);
    }
    Ok(file.to_string()?)
}

fn case(run: &Run) -> TestCase {
    let outcome = &run.outcome;
    let mut status = TestCaseStatus::success();
    if let Some((first, _)) = outcome.problems.first() {
        status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_type(first.split(':').next().unwrap_or_default()).set_message(first.clone());
        status.set_description(super::outcome::failure(outcome));
    }
    let mut case = TestCase::new(outcome.scenario.clone(), status);
    case.set_classname(format!("scn.{}", outcome.backend)).set_time(Duration::from_millis(outcome.call_ms));
    case.add_property(("seed", outcome.seed.to_string().as_str()));
    let (again, explains) = (outcome.again(), outcome.explains());
    case.set_system_out(format!("again      {again}\nthe call   {explains}\n"));
    case
}

#[cfg(test)]
mod tests {
    use crate::report::folder::tests::report;

    #[test]
    fn a_failure_names_its_oracle_and_the_next_command() {
        let text = report().junit().unwrap();
        assert!(
            text.contains(r#"<testsuites name="scn" tests="2" skipped="0" failures="1" errors="0">"#),
            "{text}"
        );
        assert!(
            text.contains(r#"<testsuite name="memory" tests="2" skipped="0" errors="0" failures="1""#),
            "{text}"
        );
        assert!(
            text.contains(r#"<failure message="scenario_expectations: "#)
                && text.contains(r#"type="scenario_expectations""#),
            "{text}"
        );
        assert!(text.contains("cargo scn run test/bad --backend memory --seed 9"), "{text}");
        assert!(!text.contains("timestamp") && !text.contains("uuid"), "{text}");
    }

    #[test]
    fn what_is_only_counted_is_one_case() {
        let mut report = report();
        let counted = crate::report::folder::tests::outcome("test/more", "stopped").1;
        (0..5).for_each(|_| report.count(&counted));
        let text = report.junit().unwrap();
        assert!(text.contains(r#"<testcase name="5 more runs""#), "{text}");
    }
}
