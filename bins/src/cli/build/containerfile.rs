//! Reads a Containerfile into steps. Runs nothing; says which line is not understood before anything is run.

use super::words::{WordError, expand, split};
use parse_dockerfile::{Command, Flag, Instruction, Source};

/// What is done, in its order, each with where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    /// The image that it begins with.
    pub(super) from: String,
    pub(super) steps: Vec<Step>,
}

/// One instruction.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// From 1.
    pub(super) line: usize,
    /// As it is written, on one line.
    pub(super) text: String,
    pub(super) action: Action,
}

/// What an instruction asks for. Operands that may name variables are as they are written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Run(Vec<String>),
    /// No instruction: `image build --script`.
    Script(Vec<u8>),
    Copy {
        sources: Vec<String>,
        destination: String,
        owner: Option<(u64, u64)>,
        mode: Option<u32>,
    },
    Env(String),
    Workdir(String),
    User(String),
    Cmd(Vec<String>),
    Entrypoint(Vec<String>),
}

/// Why a Containerfile is not built.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecipeError {
    #[error("{0}")]
    Syntax(String),
    #[error("line {line}: {problem}")]
    Line { line: usize, problem: String },
    #[error("line {line}")]
    Words {
        line: usize,
        #[source]
        source: WordError,
    },
    #[error("it has no FROM")]
    NoFrom,
}

/// Reads `text`.
pub(super) fn parse(text: &str) -> Result<Recipe, RecipeError> {
    let file = parse_dockerfile::parse(text).map_err(|error| RecipeError::Syntax(error.to_string()))?;
    let line_of = |at: usize| text.get(..at).unwrap_or(text).matches('\n').count() + 1;
    if let Some(escape) = file.parser_directives.escape.as_ref().filter(|escape| escape.value.value != '\\') {
        let problem = "`# escape` with another character than a backslash is not supported".to_owned();
        return Err(RecipeError::Line { line: line_of(escape.span().start), problem });
    }
    let mut from = None;
    let mut steps = Vec::new();
    for instruction in &file.instructions {
        let (at, name) = place(instruction);
        let line = line_of(at);
        let problem = |problem: String| RecipeError::Line { line, problem };
        let shown = shown(text, at);
        if let Instruction::From(instruction) = instruction {
            if from.is_some() {
                return Err(problem("a second FROM: an image is built in one stage".to_owned()));
            }
            no_flags(&instruction.options, name).map_err(problem)?;
            let image = instruction.image.value.to_string();
            if image.contains('$') {
                return Err(problem("FROM takes no variables".to_owned()));
            }
            from = Some(image);
            continue;
        }
        let action = match instruction {
            Instruction::Run(run) => {
                no_flags(&run.options, name).map_err(problem)?;
                if !run.here_docs.is_empty() {
                    return Err(problem("RUN with a here-document is not supported: use a script and COPY".to_owned()));
                }
                Action::Run(argv(&run.arguments).map_err(problem)?)
            }
            Instruction::Copy(copy) => {
                let (owner, mode) = copy_flags(&copy.options).map_err(problem)?;
                let sources = copy.src.iter().map(|source| match source {
                    Source::Path(path) => Ok(path.value.to_string()),
                    _ => Err("COPY of a here-document is not supported: copy a file".to_owned()),
                });
                let sources = sources.collect::<Result<Vec<_>, _>>().map_err(problem)?;
                Action::Copy { sources, destination: copy.dest.value.to_string(), owner, mode }
            }
            Instruction::Env(env) => Action::Env(env.arguments.value.to_string()),
            Instruction::Workdir(workdir) => Action::Workdir(workdir.arguments.value.to_string()),
            Instruction::User(user) => Action::User(user.arguments.value.to_string()),
            Instruction::Cmd(cmd) => Action::Cmd(argv(&cmd.arguments).map_err(problem)?),
            Instruction::Entrypoint(entrypoint) => Action::Entrypoint(argv(&entrypoint.arguments).map_err(problem)?),
            _ => {
                return Err(problem(format!(
                    "{name} is not supported: FROM, RUN, COPY, ENV, WORKDIR, USER, CMD and ENTRYPOINT are"
                )));
            }
        };
        if from.is_none() {
            return Err(problem(format!("{name} before FROM")));
        }
        let step = Step { line, text: shown, action };
        step.check()?;
        steps.push(step);
    }
    Ok(Recipe { from: from.ok_or(RecipeError::NoFrom)?, steps })
}

impl Step {
    /// Quotes and braces that are never closed are known before anything runs.
    fn check(&self) -> Result<(), RecipeError> {
        let none = |_: &str| None;
        let checked = match &self.action {
            Action::Env(text) => assignments(text, &none).map(drop),
            Action::Workdir(text) | Action::User(text) => expand(text, &none).map(drop),
            Action::Copy { sources, destination, .. } => {
                sources.iter().chain([destination]).try_for_each(|text| expand(text, &none).map(drop))
            }
            Action::Run(_) | Action::Script(_) | Action::Cmd(_) | Action::Entrypoint(_) => Ok(()),
        };
        checked.map_err(|source| RecipeError::Words { line: self.line, source })
    }
}

/// `ENV K=V K2="v 2"`, or the older `ENV K the rest of the line`.
pub(super) fn assignments(
    text: &str,
    value: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, WordError> {
    let text = text.trim();
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let rest = text.strip_prefix(first).unwrap_or_default();
        return Ok(vec![(first.to_owned(), expand(rest, value)?)]);
    }
    let words = split(text, value)?;
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (word, String::new()),
    };
    Ok(words.into_iter().map(pair).collect())
}

/// Where an instruction's keyword is in the file, and the keyword.
fn place(instruction: &Instruction<'_>) -> (usize, &'static str) {
    match instruction {
        Instruction::Add(it) => (it.add.span.start, "ADD"),
        Instruction::Arg(it) => (it.arg.span.start, "ARG"),
        Instruction::Cmd(it) => (it.cmd.span.start, "CMD"),
        Instruction::Copy(it) => (it.copy.span.start, "COPY"),
        Instruction::Entrypoint(it) => (it.entrypoint.span.start, "ENTRYPOINT"),
        Instruction::Env(it) => (it.env.span.start, "ENV"),
        Instruction::Expose(it) => (it.expose.span.start, "EXPOSE"),
        Instruction::From(it) => (it.from.span.start, "FROM"),
        Instruction::Healthcheck(it) => (it.healthcheck.span.start, "HEALTHCHECK"),
        Instruction::Label(it) => (it.label.span.start, "LABEL"),
        Instruction::Maintainer(it) => (it.maintainer.span.start, "MAINTAINER"),
        Instruction::Onbuild(it) => (it.onbuild.span.start, "ONBUILD"),
        Instruction::Run(it) => (it.run.span.start, "RUN"),
        Instruction::Shell(it) => (it.shell.span.start, "SHELL"),
        Instruction::Stopsignal(it) => (it.stopsignal.span.start, "STOPSIGNAL"),
        Instruction::User(it) => (it.user.span.start, "USER"),
        Instruction::Volume(it) => (it.volume.span.start, "VOLUME"),
        Instruction::Workdir(it) => (it.workdir.span.start, "WORKDIR"),
        _ => (0, "this instruction"),
    }
}

/// The first line of an instruction, and that there is more.
fn shown(text: &str, at: usize) -> String {
    let line = text.get(at..).unwrap_or_default().lines().next().unwrap_or_default().trim();
    match line.strip_suffix('\\') {
        Some(first) => format!("{} …", first.trim_end()),
        None => line.to_owned(),
    }
}

/// A list as it is; a line for a shell.
fn argv(command: &Command<'_>) -> Result<Vec<String>, String> {
    match command {
        Command::Exec(words) => Ok(words.value.iter().map(|word| word.value.to_string()).collect()),
        Command::Shell(text) => Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), joined(text.value)?]),
        _ => Err("a command of this form is not supported".to_owned()),
    }
}

/// Continued lines as one, as Docker hands them to the shell: comments and blank lines in between are no part of it, nor are the
/// backslash and the blanks that may be behind it. Left to the shell, a blank line would end the command.
fn joined(text: &str) -> Result<String, String> {
    let mut whole = String::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let is_blank = line.trim().is_empty();
        if index > 0 && (is_blank || line.trim_start().starts_with('#')) {
            continue;
        }
        match line.trim_end_matches([' ', '\t', '\r']).strip_suffix('\\') {
            // Here Docker ends the instruction and the parser goes on: one of them would run what was not meant.
            Some(continued) if continued.ends_with('\\') && lines.peek().is_some() => {
                return Err("a line that ends with two backslashes is not supported".to_owned());
            }
            Some(continued) if !continued.ends_with('\\') => whole.push_str(continued),
            _ => whole.push_str(line),
        }
    }
    Ok(whole)
}

fn no_flags(flags: &[Flag<'_>], name: &str) -> Result<(), String> {
    match flags.first() {
        None => Ok(()),
        Some(flag) => Err(format!("{name} with `--{}` is not supported", flag.name.value)),
    }
}

type CopyFlags = (Option<(u64, u64)>, Option<u32>);

fn copy_flags(flags: &[Flag<'_>]) -> Result<CopyFlags, String> {
    let (mut owner, mut mode) = (None, None);
    for flag in flags {
        let value = flag.value.as_ref().map_or("", |value| value.value.as_ref());
        match flag.name.value.as_ref() {
            "chown" => {
                let (user, group) = value.split_once(':').unwrap_or((value, value));
                let number = |text: &str| text.parse::<u32>().map(u64::from);
                owner = match (number(user), number(group)) {
                    (Ok(user), Ok(group)) => Some((user, group)),
                    _ => return Err(format!("COPY takes `--chown` with numbers only, not `{value}`")),
                };
            }
            "chmod" => {
                mode = match u32::from_str_radix(value, 8) {
                    Ok(bits) if bits <= 0o7777 => Some(bits),
                    _ => return Err(format!("COPY takes `--chmod` with an octal number, not `{value}`")),
                };
            }
            other => return Err(format!("COPY with `--{other}` is not supported")),
        }
    }
    Ok((owner, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str) -> Action {
        Action::Run(vec!["/bin/sh".into(), "-c".into(), line.into()])
    }

    #[test]
    fn every_instruction_that_is_supported_becomes_a_step() {
        let recipe = parse(
            "# a comment\nFROM debian-bookworm AS base\nRUN apt-get update && \\\n    # why\n    apt-get install -y jq\n\
             RUN [\"echo\", \"a b\"]\nCOPY --chown=1000 --chmod=0755 a b /opt/\nENV A=b C=\"d e\"\nWORKDIR /opt\n\
             USER nobody\nENTRYPOINT [\"/opt/a\"]\nCMD serve --all\n",
        )
        .unwrap();
        assert_eq!(recipe.from, "debian-bookworm");
        let actions: Vec<&Action> = recipe.steps.iter().map(|step| &step.action).collect();
        assert_eq!(actions[0], &sh("apt-get update &&     apt-get install -y jq"));
        assert_eq!(actions[1], &Action::Run(vec!["echo".into(), "a b".into()]));
        let copy = Action::Copy {
            sources: vec!["a".into(), "b".into()],
            destination: "/opt/".into(),
            owner: Some((1000, 1000)),
            mode: Some(0o755),
        };
        assert_eq!(actions[2], &copy);
        assert_eq!(actions[6], &Action::Entrypoint(vec!["/opt/a".into()]));
        assert_eq!(actions[7], &Action::Cmd(vec!["/bin/sh".into(), "-c".into(), "serve --all".into()]));
        assert_eq!((recipe.steps[0].line, recipe.steps[0].text.as_str()), (3, "RUN apt-get update && …"));
        assert_eq!(recipe.steps[2].line, 7);
    }

    /// Expected is what Docker's parser gives (buildkit, frontend/dockerfile/parser).
    #[test]
    fn continued_lines_are_one_command_whatever_is_between_them() {
        for (text, expected) in [
            ("apt-get install -y \\\n\n    jq", "apt-get install -y     jq"),
            ("apt-get install -y \\\n \t \n# why\n\n    jq", "apt-get install -y     jq"),
            ("echo a \\ \t\n  b", "echo a   b"),
            ("echo a \\\r\n\r\n  b\r", "echo a   b"),
            ("echo 'a\\\nb'", "echo 'ab'"),
            ("\\\n  # why\n  echo a", "echo a"),
            ("echo a \\\n\n", "echo a "),
            ("echo a\\\\", "echo a\\\\"),
            ("echo a\\\\b # c", "echo a\\\\b # c"),
        ] {
            let recipe = parse(&format!("FROM a\nRUN {text}\n")).unwrap();
            assert_eq!(recipe.steps.len(), 1, "{text:?}");
            assert_eq!(recipe.steps[0].action, sh(expected), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named_with_its_line() {
        let cases = [
            ("FROM a\nEXPOSE 80\n", "line 2: EXPOSE is not supported"),
            ("FROM a\nFROM b\n", "line 2: a second FROM"),
            ("FROM --platform=linux/arm64 a\n", "line 1: FROM with `--platform`"),
            ("FROM a\n\nRUN --mount=type=cache,target=/x true\n", "line 3: RUN with `--mount`"),
            ("FROM a\nCOPY --from=b /x /y\n", "line 2: COPY with `--from`"),
            ("FROM a\nCOPY --chown=me x y\n", "numbers only, not `me`"),
            ("FROM a\nCOPY --chmod=u+x x y\n", "octal number"),
            ("FROM a\nRUN <<EOF\ntrue\nEOF\n", "line 2: RUN with a here-document"),
            ("ARG A=1\nFROM a\n", "line 1: ARG is not supported"),
            ("FROM $A\n", "FROM takes no variables"),
            ("# nothing\n", "FROM"),
            ("# syntax=x\n# escape=`\nFROM a\nRUN a `\n b\n", "line 2: `# escape` with another character"),
            ("FROM a\nRUN echo a\\\\\nRUN b\n", "line 2: a line that ends with two backslashes"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(matches!(parse("FROM a\nENV A='b\n"), Err(RecipeError::Words { line: 2, .. })));
        assert!(matches!(parse("FROM a\nNONSENSE x\n"), Err(RecipeError::Syntax(_))));
    }

    #[test]
    fn env_has_two_forms() {
        let value = |name: &str| (name == "A").then(|| "1".to_owned());
        let pairs = |text: &str| assignments(text, &value).unwrap();
        assert_eq!(pairs("K=$A L='x y'"), [("K".into(), "1".into()), ("L".into(), "x y".into())]);
        assert_eq!(pairs("K the rest $A"), [("K".into(), "the rest 1".into())]);
    }
}
