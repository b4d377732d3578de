//! The settings of a tenant: the one place where each is declared.
//!
//! An entry has the setting's name, its kind (`kinds.rs`), its bounds if the kind has any, and its default; its comment
//! is its paragraph in the manual, in reStructuredText. Made of it are the argument of `kvm.tenant()` and `kvm.server()`, and the manual
//! (`build/vcc.rs`), the way from there (`ffi.rs`), the key in JSON (`document.rs`; after `as` if it has another name there, with
//! a dot if it is in an object), the check, and its value in `Settings::values` (`settings.rs`).
// The build script reads this file too, so it imports nothing.

/// Sizes are in bytes.
pub const KIB: i64 = 1 << 10;
/// Sizes are in bytes.
pub const MIB: i64 = 1 << 20;
/// Sizes are in bytes.
pub const GIB: i64 = 1 << 30;
/// Times are in seconds.
pub const HOUR: f64 = 3600.0;
/// Times are in seconds.
pub const DAY: f64 = 24.0 * HOUR;

/// Calls the macro `$then` with the table. Bounds and defaults need the constants above.
macro_rules! settings {
    ($then:ident) => {
        $then! {
            /// The program finds it in its environment as ``KVM_GROUP``.
            group: Text = "test";

            /// Longest time from start until the program waits for requests; at most
            /// 1 h.
            max_boot_time: Time(0.001..=HOUR) = 16.0;

            /// Longest time for a request: wait for a fork, and the program's own time;
            /// at most 1 h. It starts when the request body has been read. An unmodified
            /// server has made all of its response by then.
            max_request_time: Time(0.001..=HOUR) = 8.0;

            /// Longest time for a request's body, or an update's, to come; at most 1 h.
            /// It must not come slower than 1 KB a second either, over five seconds. A
            /// client that sends nothing at all has varnishd's *timeout_idle*. What a server
            /// takes to read a body does not count, but as its own time.
            max_body_time: Time(0.001..=HOUR) = 60.0;

            /// Longest wait for a free fork when all are busy, part of
            /// *max_request_time*; 0s does not wait.
            max_wait: Time(0.0..=HOUR) = 1.0;

            /// How many requests may wait at once, for a free fork or for the program to
            /// boot, at most 10,000; more get 503 with Retry-After at once. Each that
            /// waits holds two of Varnish's threads. -1, the default, is four times
            /// *concurrency*, at least 16; with 0 none waits.
            max_queue: CountOrDefault(0..=10_000) = -1;

            /// A fork that was not used for so long is freed; one is always kept.
            idle_time: Time(0.0..=DAY) = 60.0;

            /// Memory of the virtual machine: the program, its stack and heap;
            /// 1 MB to 64 GB.
            max_memory: Size(MIB..=64 * GIB) = 256 * MIB;

            /// Memory that one request may write, at least 64 KB. Request bodies are
            /// limited by it too, and the bodies in memory together by *concurrency* + 1
            /// times this, of which none gets more than it leaves free for others.
            max_request_memory: Size(64 * KIB..=64 * GIB) = 64 * MIB;

            /// Memory that a fork may keep after a request for the next one, at most
            /// 64 GB. A fork that has written more gives all of it back. More costs
            /// memory, less costs time when requests write much.
            req_mem_limit_after_reset: Size(0..=64 * GIB) = 8 * MIB;

            /// Longest body of a response, at most 64 GB. A longer one is the program's
            /// failure.
            max_response_size: Size(0..=64 * GIB) = 64 * MIB;

            /// Memory for the bodies of the tenant's responses that are on their way to
            /// clients, at least *max_response_size* and at most 64 GB. A response
            /// counts with its whole body until Varnish has taken the last of it, which
            /// is when the client of one that is not cached has read nearly all of it.
            /// One for which no room is left becomes a 503 with Retry-After. One of an
            /// unmodified server that takes its time waits for its client instead.
            max_response_memory: Size(0..=64 * GIB) = 128 * MIB;

            /// Most forks at once, 1 to 255, that is, requests that run at the same
            /// time.
            concurrency: Count(1..=255) = 2;

            /// Of a program with handlers: whether each request finds the frozen program, and leaves nothing. With
            /// ``false`` **its requests are not isolated from each other**: each fork goes on with all that its
            /// earlier requests have left in memory, files and descriptors, whoever's they were, until one
            /// fails or what is kept is more than *max_memory*. Nobody says which of the forks a request is
            /// given, and one that is idle for *idle_time* is gone.
            ephemeral: Flag = true;

            /// Of a program with handlers: whether its ``main()`` may say so by ``make_ephemeral(false)``.
            control_ephemeral: Flag = false;

            /// Of a program with handlers: memory that all its forks and its storage share, at most 1 GB; 0 for
            /// none. No reset touches it: **what a request writes there, later requests can see**, and those that
            /// run at the same time.
            shared_memory: Size(0..=GIB) = 0;

            /// Whether the program has storage, a machine that its requests call and that keeps
            /// its state: ``true`` for a second machine of the program, which is booted for that
            /// (``KVM_TYPE=storage``), ``"fork"`` for a fork of the program that is never reset.
            /// Whatever a request has the storage do, later requests can see.
            storage: StorageKind = "false";

            /// Longest content of the file that the storage keeps what has to outlive
            /// varnishd in (``KVM_STATE``), at most 1 GB; 0 for none. It is in *state_dir*, as
            /// *NAME*.versions/state.
            max_state_size: Size(0..=GIB) = 16 * MIB;

            /// Longest time of a call of the storage, and of a task's run; at most 1 h. A call
            /// is part of its request's *max_request_time*.
            max_storage_time: Time(0.001..=HOUR) = 10.0;

            /// Arguments of ``main()`` after ``argv[0]``, which is the name. They are
            /// separated by white space; ``"..."`` and ``'...'`` hold words together,
            /// and ``\`` takes the next character as it is, except between single
            /// quotes. (Between ``{"`` and ``"}``, VCL's long strings, quotes need no
            /// care.)
            main_arguments: Words = "";

            /// More of the program's environment: ``KEY=value`` entries, written like
            /// *main_arguments*.
            environment: Environment = "";

            /// Absolute paths of files and folders that the program may read, written
            /// like *main_arguments*. Nothing else exists for it.
            allowed_paths: Paths = "";

            /// Where the program is fetched from, in place of one at *path* (which may be empty
            /// then): ``http://...`` or ``https://...``, when it is to be booted. ``file://...`` is a path.
            /// It is kept at *path*, or in *cold_start_file*, or in *state_dir* as *NAME*.program, and the one that is
            /// kept is used when none can be fetched, or needs not be since *sha256* says that it is the one. With none of
            /// these places it is not kept. It may have *max_boot_time* to come, and *max_memory* bytes; one that could not be
            /// fetched is tried again as one that did not boot.
            uri: Text = "";

            /// Whether the program boots when the VCL is loaded; otherwise when it is first asked for,
            /// whose request waits for it as for any that boots.
            start: Flag = true;

            /// The SHA-256 of the program at *path* or *uri*, in hex. Another one is not booted. (Updates are
            /// not meant.)
            sha256: Digest = "";

            /// The same by MD5, which is no protection from somebody who means harm: better have *sha256*.
            md5: Md5Digest = "";

            /// Where a program that is fetched is kept.
            cold_start_file: PathOrNone = "";

            /// Of a program with handlers: whether its heap and mappings may be executed, as is needed by
            /// one that makes machine code while it answers.
            executable_heap: Flag = false;

            /// Of a server: where it sees the folder of its application: an absolute path,
            /// such as ``/app``. An update may then be an archive of it (tar, tar.gz or zip,
            /// told by its content) in place of a program: it is unpacked in *state_dir*, and
            /// the program at *path*, which may be in the folder, is booted with it. Until then the
            /// server sees the host's own folder of this path, if there is one. It can only be
            /// read.
            folder: PathOrNone = "";

            /// Most bytes that an archive of *folder* may have when it is unpacked; at most
            /// 64 GB.
            max_folder_size: Size(KIB..=64 * GIB) = 512 * MIB;

            /// Most files, folders and links in one; at most 1,000,000.
            max_folder_files: Count(1..=1_000_000) = 50_000;

            /// Folders where the program may change files, like *allowed_paths*; a server
            /// may in /tmp and /dev/shm besides. What it changes is kept in memory, and forgotten after the
            /// request.
            writable_paths: Folders = "";

            /// Files and folders of the host, and where the program sees them, as
            /// ``HOST:GUEST``, written like *main_arguments*. They can be read; with
            /// ``:overlay`` after them also be changed, in memory until the request's end;
            /// with ``:rw`` be changed in the host, at once and for good, by which requests
            /// can reach later ones.
            volumes: Volumes = "";

            /// Of a server, or a program that takes bodies by segments (slot 4): longest body of a
            /// request, which goes to it as it comes, and is held by nobody; at most 64 GB. (Other
            /// programs' are held, and limited by *max_request_memory*.)
            max_body_size: Size(0..=64 * GIB) = 64 * MIB;

            /// Of a server: most connections that ``return (pipe)`` gives it at once, at most
            /// 10,000; more get 503. Each has a fork of its own for its life, beside
            /// *concurrency*, and one of Varnish's threads.
            max_pipes: Count(0..=10_000) = 16;

            /// Of a server: longest time for such a connection; at most a day.
            max_pipe_time: Time(0.001..=DAY) = HOUR;

            /// Of a server: how long nothing may come on such a connection, either way; at
            /// most a day.
            max_pipe_idle: Time(0.001..=DAY) = 60.0;

            /// Memory for files that the program changes, for each fork; never more
            /// than *max_request_memory*; at most 64 GB.
            max_file_memory: Size(0..=64 * GIB) = 64 * MIB;

            /// Most that one request may write to volumes that are ``:rw``; a
            /// new name counts for 4 KB; at most 64 GB.
            max_volume_writes: Size(0..=64 * GIB) = GIB;

            /// Where a program may have something fetched from (*PROGRAMS THAT FETCH*), or a
            /// server connect and send to, written like *main_arguments*: names, ``*.NAME``
            /// for all beneath one, addresses, ranges of them (``10.0.0.0/8``), or ``*`` for all that
            /// is public, each with ``:PORT`` for one port only. Nothing unless named; what is
            /// not public only by its address.
            allow_net: NetRules = "";

            /// Of a program: longest body of what it has fetched, and of what it sends for
            /// that; at most 4 GB.
            max_fetch_size: Size(0..=4 * GIB - 1) = 16 * MIB;

            /// Of a program: most fetches of the tenant's at once, at most 10,000.
            max_fetches: Count(0..=10_000) = 64;

            /// Of a program: longest time for a fetch, within *max_request_time*: by a shorter
            /// one than that the program is told, and can answer in another way.
            max_fetch_time: Time(0.001..=HOUR) = HOUR;

            /// Of a program: absolute path of a file in PEM with certificates of authorities that
            /// are good for its fetches by https besides the host's.
            fetch_ca_file: PathOrNone = "";

            /// Of a program: whether it may say of a fetch that the certificate's name does
            /// not matter. The rest of the certificate does in any case.
            fetch_unverified: Flag = false;

            /// Of a server: where it may listen, in its machine, written like *main_arguments*:
            /// ports, addresses, or ``ADDRESS:PORT``. Everywhere unless given.
            allow_listen: ListenRules = "";

            /// Of a server: whether connections to the outside that are open when it waits for
            /// its first request are found reset in each fork. Otherwise it does not become
            /// ready.
            drop_connections: Flag = false;

            /// Of a server: a file that ``forkvm snapshot`` has written of the program at *path*,
            /// from which it starts without a boot. It has to have been taken with the same
            /// *main_arguments*, and with what the program may read and change. If it can't
            /// be used, the log says why, and the program is booted, as updates are.
            snapshot: PathOrNone = "";

            /// Of a server: whether the program at *path* is kept in *state_dir* as it is after
            /// its boot, with all that it has in memory. From that it starts the next time,
            /// without a boot, if it is the same program with the same settings on the same kind
            /// of host, and no file that it has read has changed.
            keep_snapshot: Flag = false;

            /// The working directory that the program sees.
            current_working_directory: Path = "/";

            /// Whether each answer has a record in the log: ``kvm: tenant NAME: answered
            /// status=200 version=1f0c8a7be92d fork=1 us=61 wait_us=0 guest_us=27 exits=1
            /// pages=6``. *us* is the time from the request to the answer's head, the wait
            /// for a fork included; *guest_us* what of it the machine ran, *exits* how often
            /// it came back from there, *pages* what it wrote, all as far as the head; *fork* is
            /// 0 of an unmodified server. What fails has a record of its own anyway.
            log_requests: Flag = false;

            /// Whether the program's stdout and stderr go to the log.
            stdout: Flag = false;

            /// How many requests to run in the program before it is frozen, at most
            /// 10,000. What they leave in the program's memory is part of the state
            /// that every request starts from. 0, the default, runs none. A program
            /// that fails in one does not become ready.
            warmup as "warmup.num_requests": Count(0..=10_000) = 0;

            /// The URL of the warm-up requests.
            warmup_url as "warmup.url": Text = "/";

            /// Their method.
            warmup_method as "warmup.method": Text = "GET";

            /// Their headers, like ``{"'Accept: text/html' 'X-A: b'"}``, written like
            /// *main_arguments*.
            warmup_headers as "warmup.headers": Headers = "";

            /// Whether each new fork runs one of them, too, and is reset, before it
            /// gets a request: its first request then costs about what a later one does.
            warmup_forks as "warmup.forks": Flag = true;

            /// Of a server: how long it goes on after its warm-up before it is frozen, part of
            /// *max_boot_time*: for what it does some time after its start, which each request
            /// would see it do otherwise.
            warmup_time as "warmup.time": Time(0.0..=HOUR) = 0.0;

            /// The key that allows live updates and debugging of this tenant, see
            /// `kvm.live_update()`_ and `kvm.vm_debug_backend()`_. Without a key, or with an
            /// empty one, there is neither.
            update_key as "key": Secret = "";

            /// Absolute path of a file with the key, in place of *update_key*. It is read at
            /// each update, so the key can be changed without a VCL reload. White space
            /// around the key does not count.
            update_key_file: PathOrNone = "";

            /// Whether updates, rollbacks and debugging need a signature with the key, as
            /// ``forkvm`` sends it, and the key itself is refused. What clients send is in
            /// Varnish's log; a signature is good for one order within five minutes
            /// (see `live-update.md`).
            signed_orders: Flag = false;

            /// Longest program, or archive, that an update may bring, where `kvm.live_update()`_ is not told
            /// otherwise.
            max_update_size: Size(KIB..=64 * GIB) = 50 * MIB;

            /// The folder that updates are stored in, each tenant's in *NAME*.versions.
            /// Varnish's child must be allowed to write there. Without it, the folder that
            /// *path* is in. A *NAME*.versions that others may write to is not used.
            state_dir: PathOrNone = "";

            /// How many programs before the present one are kept for rollback, at most 100.
            keep_versions: Count(0..=100) = 2;

            /// Whether an update goes on without state when the old program can't hand its
            /// state over or the new one can't take it. Otherwise the update fails.
            update_without_state: Flag = false;

            /// Whether a change of the file at *path* is an update: it is noticed within
            /// about two seconds. Otherwise it is picked up by the next VCL load only. Of a program that is
            /// fetched that is the file that is kept; what *uri* has by now is not looked at.
            watch: Flag = false;

            /// Whether the program's responses have a header ``X-Program-Version`` with
            /// the SHA-256 of the program that made them.
            version_header: Flag = false;

            /// Whether requests of this tenant may be stopped and looked at with gdb:
            /// those of `kvm.vm_debug_backend()`_ and `kvm.live_debug()`_, which need the
            /// key besides, and any that calls ``breakpoint()``.
            allow_debug: Flag = false;

            /// Where gdb can connect, on this machine only: ``127.0.0.1:PORT`` (0, the
            /// default, is any free port), or the absolute path of a Unix socket or of a
            /// folder for one. Every user of the machine can connect to a port; a socket
            /// is only for the user that Varnish's child runs as, and root.
            debug_address: Address = "127.0.0.1:0";

            /// Longest time from a request's first stop to its end, at most 1 h; then it
            /// fails.
            debug_timeout: Time(0.001..=HOUR) = 120.0;

            /// Whether any request that is about to fail by an exception (a wrong
            /// pointer, say) stops for gdb before. Its client waits meanwhile, up to
            /// *debug_timeout* if nobody attaches; one request at a time.
            debug_exceptions: Flag = false;
        }
    };
}
pub(crate) use settings;
