//! `--help` of everything, in one snapshot: what users type is changed on purpose only.

use integration::TestEnvironment;

#[test]
fn help_of_everything() {
    let environment = TestEnvironment::new();
    let mut pages = String::new();
    let mut commands: Vec<Vec<String>> = vec![vec![]];
    while let Some(command) = commands.pop() {
        let help = environment.banger(command.iter().map(String::as_str).chain(["--help"])).success();
        for line in help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty()) {
            // Continuation lines of a description are indented further.
            if let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) {
                let name = name.split_whitespace().next().unwrap().to_owned();
                commands.push(command.iter().cloned().chain([name]).collect());
            }
        }
        pages.push_str(&format!(
            "$ banger {}\n\n{help}\n",
            command.iter().map(|word| format!("{word} ")).collect::<String>() + "--help"
        ));
    }
    insta::assert_snapshot!("help", pages);
}
