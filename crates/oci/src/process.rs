//! What runs: arguments, environment, working directory; and further processes beside the first.

use crate::path::clean;
use crate::{ContainerInput, SpecError};
use berth_cri::runtime::v1::ContainerConfig;
use oci_spec::runtime::Process;
use std::path::PathBuf;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Command and arguments. A command of the request replaces the image's entrypoint and its arguments; arguments of the
/// request alone replace the image's arguments only.
pub(crate) fn arguments(input: &ContainerInput<'_>) -> Result<Vec<String>, SpecError> {
    let (asked, image) = (input.container, input.image);
    let (command, args) = match (asked.command.is_empty(), asked.args.is_empty()) {
        (false, _) => (&asked.command, &asked.args),
        (true, false) => (&image.entrypoint, &asked.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    if all.is_empty() {
        return Err(SpecError::invalid(
            "config.command",
            "neither the request nor the image says what to run",
        ));
    }
    if all.iter().any(|argument| argument.contains('\0')) {
        return Err(SpecError::invalid("config.command", "an argument has a NUL in it"));
    }
    Ok(all)
}

/// The request's directory, else the image's, else `/`; relative ones are taken from `/`.
pub(crate) fn working_dir(input: &ContainerInput<'_>) -> Result<PathBuf, SpecError> {
    let asked = [&input.container.working_dir, &input.image.working_dir];
    let chosen = asked.into_iter().find(|dir| !dir.is_empty()).map_or("/", String::as_str);
    clean(&format!("/{chosen}"))
        .ok_or_else(|| SpecError::invalid("config.working_dir", format!("{chosen:?} has a NUL in it")))
}

/// Defaults, then the image's variables, then the request's; a later value replaces an earlier one in its place.
pub(crate) fn environment(input: &ContainerInput<'_>) -> Result<Vec<String>, SpecError> {
    let mut environment = Environment::default();
    environment.set("PATH", DEFAULT_PATH);
    environment.set("HOSTNAME", hostname(input));
    if input.container.tty {
        environment.set("TERM", "xterm");
    }
    environment.set("HOME", &input.user.home);
    for entry in &input.image.env {
        // An entry that is only a name is a build-time relic: there is no value to set.
        if let Some((name, value)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) {
            environment.set(name, value);
        }
    }
    add_requested(&mut environment, input.container)?;
    if environment.0.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(SpecError::invalid("config.envs", "a variable has a NUL in it"));
    }
    Ok(environment.0.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

fn add_requested(environment: &mut Environment, container: &ContainerConfig) -> Result<(), SpecError> {
    for variable in &container.envs {
        let name = &variable.key;
        if name.is_empty() || name.contains('=') {
            return Err(SpecError::invalid("config.envs", format!("{name:?} is not a variable's name")));
        }
        // The OCI spec is JSON: it has no other bytes.
        let value = std::str::from_utf8(&variable.value).map_err(|_| {
            SpecError::unsupported("config.envs", format!("the value of {name:?} is not UTF-8"))
        })?;
        environment.set(name, value);
    }
    Ok(())
}

/// What hostname(1) prints inside: the pod's name, or the host's in the host's UTS namespace.
fn hostname<'a>(input: &ContainerInput<'a>) -> &'a str {
    match (&input.namespaces.uts, input.sandbox.hostname.as_str()) {
        (Some(_), name) if !name.is_empty() => name,
        _ => &input.host.hostname,
    }
}

#[derive(Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }
}

/// A further process in a container whose first one is `first`: confined exactly alike, only what it runs and its
/// terminal differ. `command` is not empty.
pub fn exec_process(first: &Process, command: &[String], tty: bool) -> Process {
    let mut process = first.clone();
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(tty));
    process.set_console_size(None);
    let mut environment = first.env().clone().unwrap_or_default();
    if tty && !environment.iter().any(|entry| entry.starts_with("TERM=")) {
        environment.push("TERM=xterm".to_owned());
    }
    process.set_env(Some(environment));
    process
}
