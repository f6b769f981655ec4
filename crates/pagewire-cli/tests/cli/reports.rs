//! The report of a study that was run, and made again.

use serde_json::Value;

use crate::driving::{run, stdout};

#[test]
fn a_study_ends_with_its_report_which_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("study");
    let out = out.to_str().unwrap();
    // What needs no link: it is here, and so quick.
    let size = ["--size", "1MiB", "--cap", "1s"];
    let args =
        [&["study", "--quick", "--methods", "local-memory,local-file", "--out", out][..], &size].concat();
    let said = stdout(&args);
    assert!(
        said.contains("report:   ") && said.contains("report.html") && said.contains("report.md"),
        "{said}"
    );
    let read = |name: &str| std::fs::read_to_string(folder.path().join("study").join(name)).unwrap();
    let (html, markdown) = (read("report.html"), read("report.md"));
    assert!(html.contains("local memory") && html.trim_end().ends_with("</html>"));
    assert!(markdown.contains("| local memory |"), "{markdown}");

    std::fs::remove_file(folder.path().join("study/report.html")).unwrap();
    let said: Value =
        serde_json::from_str(&stdout(&["study", "--report-only", "--out", out, "--json"])).unwrap();
    assert!(said["html"].as_str().unwrap().ends_with("report.html"), "{said}");
    assert_eq!((read("report.html"), read("report.md")), (html, markdown), "the same data, the same report");
}

#[test]
fn what_is_no_study_has_no_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let output = run(&["study", "--report-only", "--out", out]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("raw.jsonl") && errors.lines().count() == 1, "{errors}");
    std::fs::write(folder.path().join("raw.jsonl"), "{}\n").unwrap();
    let output = run(&["study", "--report-only", "--out", out]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && errors.contains("line 1"), "{errors}");
    assert_eq!(run(&["study", "--report-only", "--quick"]).status.code(), Some(2));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was written");
}
