//! nginx, and the programs behind it: a FastCGI process that stays, and one process a request. Unix sockets all the way.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::present;
use super::process::Server;

/// Threads of the FastCGI process: nginx keeps a connection to each, and holds one for each request under way.
const FASTCGI_THREADS: usize = 80;
/// Processes of fcgiwrap: CGI programs at once.
const CGI_PROCESSES: usize = 8;

/// nginx.
pub struct Nginx(#[expect(dead_code, reason = "ends with its drop")] Server);

impl Nginx {
    /// Starts it on `folder`/nginx.socket.
    pub fn start(program: &Path, folder: &Path, cgi: &Path) -> Result<Self> {
        let settings = folder.join("nginx.conf");
        std::fs::write(&settings, source(folder, cgi))
            .with_context(|| settings.display().to_string())?;
        let mut server = Server::start(
            "nginx",
            present(program)?,
            folder,
            Stdio::null(),
            |command| {
                command
                    .arg("-p")
                    .arg(folder)
                    .arg("-e")
                    .arg(folder.join("nginx-error.log"))
                    .arg("-c")
                    .arg(&settings);
            },
        )?;
        server.wait(|| folder.join("nginx.socket").exists().then_some(()))?;
        Ok(Self(server))
    }
}

fn source(folder: &Path, cgi: &Path) -> String {
    let folder = folder.display();
    let cgi = cgi.display();
    // Otherwise its workers become another user, who may not use the sockets.
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    format!(
        r"{user}
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type text/plain;
    keepalive_requests 100000000;
    client_body_temp_path {folder}/body;
    fastcgi_temp_path {folder}/fastcgi;
    proxy_temp_path {folder}/proxy;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream fastcgi {{
        server unix:{folder}/fastcgi.socket;
        keepalive 64;
        keepalive_requests 100000000;
    }}
    server {{
        listen unix:{folder}/nginx.socket;
        fastcgi_param REQUEST_METHOD $request_method;
        fastcgi_param REQUEST_URI $request_uri;
        fastcgi_param QUERY_STRING $query_string;
        fastcgi_param SERVER_PROTOCOL $server_protocol;
        location /fastcgi {{
            fastcgi_keep_conn on;
            fastcgi_pass fastcgi;
        }}
        location /cgi {{
            fastcgi_param SCRIPT_FILENAME {cgi};
            fastcgi_pass unix:{folder}/cgi.socket;
        }}
    }}
}}
"
    )
}

/// A FastCGI process that stays.
pub struct FastCgi(#[expect(dead_code, reason = "ends with its drop")] Server);

impl FastCgi {
    /// Starts it on `folder`/fastcgi.socket.
    pub fn start(program: &Path, folder: &Path) -> Result<Self> {
        let stdin = listen(&folder.join("fastcgi.socket"))?.into();
        let server = Server::start("fastcgi", present(program)?, folder, stdin, |command| {
            command.arg(FASTCGI_THREADS.to_string());
        })?;
        Ok(Self(server))
    }
}

/// fcgiwrap, which runs CGI programs.
pub struct Cgi(#[expect(dead_code, reason = "ends with its drop")] Vec<Server>);

impl Cgi {
    /// Starts it on `folder`/cgi.socket: single processes, since those that it forks itself outlive it.
    pub fn start(program: &Path, folder: &Path, more: impl Fn(&mut Command)) -> Result<Self> {
        let listener = listen(&folder.join("cgi.socket"))?;
        let server = |_| {
            let stdin = listener.try_clone()?.into();
            Server::start("fcgiwrap", present(program)?, folder, stdin, &more)
        };
        (0..CGI_PROCESSES)
            .map(server)
            .collect::<Result<_>>()
            .map(Self)
    }
}

/// A FastCGI program finds the socket it listens on as descriptor 0.
fn listen(path: &Path) -> Result<OwnedFd> {
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    Ok(listener.into())
}
