//! Which cgroups are containers, told by their names.
//!
//! Engines name a cgroup after the container's id, which has 64 hexadecimal digits: as a scope of systemd with a prefix of their
//! own, or as a folder with the bare id. Services, sessions and virtual machines are no containers.

/// Digits of an engine's id.
const ID_DIGITS: usize = 64;
/// Digits of an id that are told, as engines themselves shorten it.
const SHORT_DIGITS: usize = 12;

/// What a container was started by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// containerd, as below Kubernetes or nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
    /// Some runtime below Kubernetes.
    Kubernetes,
    /// LXC, Incus or LXD.
    Lxc,
    /// systemd-nspawn, or another that registers with systemd-machined.
    Nspawn,
    /// Something that names its cgroups by ids.
    Oci,
}

impl Runtime {
    /// The runtime as rows spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::Kubernetes => "kubernetes",
            Self::Lxc => "lxc",
            Self::Nspawn => "nspawn",
            Self::Oci => "oci",
        }
    }
}

/// Which container a cgroup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What it was started by.
    pub runtime: Runtime,
    /// The whole id of an engine, else the container's name.
    pub id: String,
}

impl Identity {
    fn new(runtime: Runtime, id: &str) -> Self {
        Self { runtime, id: id.to_owned() }
    }

    /// The id as it is told: of an engine's id the first digits.
    #[must_use]
    pub fn short_id(&self) -> &str {
        if is_id(&self.id) { &self.id[..SHORT_DIGITS] } else { &self.id }
    }

    /// The name that the id is itself; none where it takes an engine to tell the name.
    #[must_use]
    pub fn own_name(&self) -> Option<&str> {
        (!is_id(&self.id)).then_some(&*self.id)
    }
}

/// The prefixes of the scopes that engines make.
const SCOPES: &[(&str, Runtime)] = &[
    ("docker-", Runtime::Docker),
    ("libpod-payload-", Runtime::Podman),
    ("libpod-", Runtime::Podman),
    ("cri-containerd-", Runtime::Containerd),
    ("nerdctl-", Runtime::Containerd),
    ("crio-", Runtime::Crio),
];

/// The container that a cgroup is, by its name and the path of the folder that it is in, which is empty at the root and has no
/// slash at its ends. None of other cgroups.
#[must_use]
pub fn recognise(parent: &str, name: &str) -> Option<Identity> {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    let scope = SCOPES.iter().find_map(|(prefix, runtime)| {
        let id = stem.strip_prefix(prefix).filter(|id| is_id(id))?;
        Some(Identity::new(*runtime, id))
    });
    scope.or_else(|| bare(parent, name)).or_else(|| lxc(parent, name)).or_else(|| machine(parent, name))
}

/// A folder named by an id alone, as with the driver `cgroupfs`.
fn bare(parent: &str, name: &str) -> Option<Identity> {
    let within = |of: fn(&str) -> bool| parent.split('/').any(of);
    let runtime = match name {
        _ if !is_id(name) => return None,
        _ if within(|folder| folder.contains("kubepods")) => Runtime::Kubernetes,
        _ if within(|folder| folder == "docker") => Runtime::Docker,
        _ if within(|folder| folder == "libpod_parent") => Runtime::Podman,
        _ => Runtime::Oci,
    };
    Some(Identity::new(runtime, name))
}

/// `lxc.payload.<name>`, or `lxc/<name>` and `lxc.payload/<name>` before LXC 4.
fn lxc(parent: &str, name: &str) -> Option<Identity> {
    let named = name.strip_prefix("lxc.payload.").or_else(|| matches!(parent, "lxc" | "lxc.payload").then_some(name));
    named.filter(|name| !name.is_empty()).map(|name| Identity::new(Runtime::Lxc, name))
}

/// What is registered with systemd-machined, virtual machines left out.
fn machine(parent: &str, name: &str) -> Option<Identity> {
    if parent != "machine.slice" {
        return None;
    }
    let nspawn = name.strip_prefix("systemd-nspawn@").and_then(|name| name.strip_suffix(".service"));
    let scope = || name.strip_prefix("machine-").and_then(|name| name.strip_suffix(".scope"));
    let named = unescape(nspawn.or_else(scope)?);
    let runtime = if named.starts_with("lxc-") { Runtime::Lxc } else { Runtime::Nspawn };
    (!named.is_empty() && !named.starts_with("qemu-")).then_some(Identity { runtime, id: named })
}

/// Takes back `\x2d`, by which systemd writes what has a meaning in names of units.
fn unescape(name: &str) -> String {
    let mut text = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = after.strip_prefix(b"x").and_then(|code| std::str::from_utf8(code.get(..2)?).ok());
        match escaped.filter(|_| *byte == b'\\').and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) => {
                text.push(code);
                rest = &after[3..];
            }
            None => {
                text.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const POD: &str = "kubepods-burstable-pod1f4b3c2d_0000_1111_2222_333344445555.slice";

    fn runtime(parent: &str, name: &str) -> Option<&'static str> {
        recognise(parent, &name.replace("ID", ID)).map(|identity| {
            assert!(!name.contains("ID") || (identity.id == ID && identity.short_id() == "0123456789ab"));
            identity.runtime.as_str()
        })
    }

    #[test]
    fn engines_are_known_by_their_scopes_and_folders() {
        let pods = format!("kubepods.slice/kubepods-burstable.slice/{POD}");
        let kind = format!("kubelet.slice/kubelet-kubepods.slice/{POD}");
        let user = "user.slice/user-1000.slice/user@1000.service/user.slice";
        for (parent, name, expected) in [
            ("system.slice", "docker-ID.scope", "docker"),
            (user, "docker-ID.scope", "docker"),
            ("docker", "ID", "docker"),
            ("system.slice/docker", "ID", "docker"),
            ("machine.slice", "libpod-ID.scope", "podman"),
            ("machine.slice/machine-libpod_pod_x.slice", "libpod-ID.scope", "podman"),
            (user, "libpod-ID.scope", "podman"),
            ("system.slice/web.service", "libpod-payload-ID", "podman"),
            ("libpod_parent", "libpod-ID", "podman"),
            ("libpod_parent", "ID", "podman"),
            (&pods, "cri-containerd-ID.scope", "containerd"),
            (&kind, "cri-containerd-ID.scope", "containerd"),
            (&pods, "crio-ID.scope", "crio"),
            (&pods, "docker-ID.scope", "docker"),
            ("kubepods/burstable/pod1f4b3c2d", "ID", "kubernetes"),
            ("system.slice", "nerdctl-ID.scope", "containerd"),
            ("default", "ID", "oci"),
        ] {
            assert_eq!(runtime(parent, name), Some(expected), "{parent}/{name}");
        }
    }

    #[test]
    fn system_containers_are_known_by_their_names() {
        for (parent, name, expected, id) in [
            ("", "lxc.payload.web", "lxc", "web"),
            ("lxc", "101", "lxc", "101"),
            ("lxc.payload", "web", "lxc", "web"),
            ("machine.slice", "systemd-nspawn@build.service", "nspawn", "build"),
            ("machine.slice", r"systemd-nspawn@my\x2dbox.service", "nspawn", "my-box"),
            ("machine.slice", "machine-box.scope", "nspawn", "box"),
            ("machine.slice", r"machine-lxc\x2d7\x2dweb.scope", "lxc", "lxc-7-web"),
        ] {
            let identity = recognise(parent, name).unwrap_or_else(|| panic!("{parent}/{name}"));
            assert_eq!((identity.runtime.as_str(), identity.short_id()), (expected, id));
            assert_eq!(identity.own_name(), Some(id));
        }
    }

    #[test]
    fn services_sessions_monitors_and_virtual_machines_are_no_containers() {
        for (parent, name) in [
            ("system.slice", "docker.service"),
            ("system.slice", "docker-short.scope"),
            ("system.slice", "containerd.service"),
            ("machine.slice", "libpod-conmon-ID.scope"),
            ("system.slice", "crio-conmon-ID.scope"),
            ("machine.slice", r"machine-qemu\x2d1\x2dvm.scope"),
            ("system.slice", "systemd-nspawn@build.service"),
            ("", "lxc.monitor.web"),
            ("", "lxc.payload."),
            ("", "lxc"),
            ("user.slice/user-0.slice", "session-1.scope"),
            ("kubepods.slice", POD),
            ("", "init.scope"),
            ("docker", &ID[1..]),
            ("docker", &ID.to_uppercase()),
        ] {
            assert_eq!(runtime(parent, name), None, "{parent}/{name}");
        }
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic(parent in "(docker|lxc|machine.slice)?[a-z/]{0,9}", name in ".{0,20}|machine-[\\\\x0-9é]{0,9}.scope") {
            if let Some(identity) = recognise(&parent, &name) {
                prop_assert!(!identity.short_id().is_empty());
            }
        }
    }
}
