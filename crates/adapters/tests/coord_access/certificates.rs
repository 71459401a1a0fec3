//! Certificates as an operator would make them.

use adapters::exec::Exec;
use std::path::PathBuf;

/// An authority, and what it vouches for: a server and a client on loopback.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    pub fn make() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let certificates = Certificates(directory);
        let openssl = |command: &str| {
            let exec =
                Exec::new("openssl").args(command.split(' ')).directory(certificates.0.path());
            exec.run_briefly().expect("openssl");
        };
        openssl(
            "req -x509 -newkey rsa:2048 -noenc -keyout ca.key -out ca.pem -days 2 -subj /CN=ca \
             -addext basicConstraints=critical,CA:TRUE",
        );
        for (name, usage) in [("server", "serverAuth,clientAuth"), ("client", "clientAuth")] {
            openssl(&format!(
                "req -newkey rsa:2048 -noenc -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ));
            let extensions = format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n");
            std::fs::write(certificates.path(&format!("{name}.ext")), extensions).expect("written");
            openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem \
                 -days 2 -extfile {name}.ext"
            ));
        }
        openssl("pkey -in server.key -pubout -out server.public");
        let read = |name: &str| std::fs::read_to_string(certificates.path(name)).expect("read");
        let both = read("server.key") + &read("server.pem");
        std::fs::write(certificates.path("server-store.pem"), both).expect("written");
        certificates
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
