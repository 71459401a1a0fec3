//! A real etcd that asks who one is.

#![allow(dead_code, reason = "each test binary uses a part")]

use super::certificates::Certificates;
use adapters::testing::{Etcd, EtcdOptions};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, Permission, TlsOptions};

/// What begins with it is the user's.
pub const ROOT: &str = "/guarded";

/// A server where `manatee` may do everything below [`ROOT`], `reader` may read there, and `nobody` may
/// nothing, as soon as [`Guarded::enable`] was called.
pub struct Guarded {
    pub etcd: Etcd,
    pub certificates: Certificates,
    pub secure: bool,
    _directory: tempfile::TempDir,
}

impl Guarded {
    pub fn start(secure: bool, arguments: &[&str]) -> Guarded {
        let certificates = Certificates::make();
        let name = |file: &str| certificates.path(file).display().to_string();
        // Passwords that are quickly checked: the machine is small.
        let mut arguments: Vec<_> =
            arguments.iter().map(|argument| argument.replace("{}", &name(""))).collect();
        // Passwords that are quickly checked: the machine may be small.
        arguments.extend(["--bcrypt-cost", "4"].map(str::to_owned));
        if secure {
            let files = [
                ("--cert-file", "server.pem"),
                ("--key-file", "server.key"),
                ("--trusted-ca-file", "ca.pem"),
            ];
            arguments.push("--client-cert-auth".to_owned());
            arguments
                .extend(files.iter().flat_map(|(flag, file)| [(*flag).to_owned(), name(file)]));
        }
        let directory = tempfile::tempdir().expect("a directory");
        let options = EtcdOptions { secure, arguments, ..EtcdOptions::default() };
        let etcd = Etcd::start_with(directory.path(), 1, options).expect("an etcd");
        Guarded { etcd, certificates, secure, _directory: directory }
    }

    /// With users that are asked for from the beginning.
    pub async fn closed(secure: bool, arguments: &[&str]) -> Guarded {
        let guarded = Guarded::start(secure, arguments);
        guarded.enable().await;
        guarded
    }

    pub async fn raw(&self, options: ConnectOptions) -> Client {
        let read = |name: &str| std::fs::read(self.certificates.path(name)).expect("read");
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")))
            .identity(Identity::from_pem(read("client.pem"), read("client.key")));
        let (scheme, options) = match self.secure {
            true => ("https", options.with_tls(tls)),
            false => ("http", options),
        };
        let url = format!("{scheme}://{}", self.etcd.address(0));
        Client::connect([url], Some(options)).await.expect("a client")
    }

    /// Makes users and roles, and has them asked for.
    pub async fn enable(&self) {
        let mut client = self.raw(ConnectOptions::new()).await;
        let below = |permission: Permission| Some(permission.with_prefix());
        let prefix = format!("{ROOT}/");
        let roles = [
            ("root", None),
            ("manatee", below(Permission::read_write(&*prefix))),
            ("reader", below(Permission::read(&*prefix))),
            ("nobody", None),
        ];
        for (name, permission) in roles {
            client.role_add(name).await.expect("a role");
            if let Some(permission) = permission {
                client.role_grant_permission(name, permission).await.expect("granted");
            }
            client.user_add(name, format!("{name} secret"), None).await.expect("a user");
            client.user_grant_role(name, name).await.expect("granted");
        }
        client.auth_enable().await.expect("enabled");
    }

    pub async fn root(&self) -> Client {
        self.raw(ConnectOptions::new().with_user("root", "root secret")).await
    }

    /// Changes what the user may do with its keys.
    pub async fn allow(&self, permission: fn(&str) -> Permission) {
        let permission = permission(&format!("{ROOT}/")).with_prefix();
        let granted = self.root().await.role_grant_permission("manatee", permission).await;
        granted.expect("granted");
    }

    pub async fn change_password(&self, password: &str) {
        let changed = self.root().await.user_change_password("manatee", password).await;
        changed.expect("changed");
    }
}
