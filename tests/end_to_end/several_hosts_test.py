"""Ranks on several hosts: Linux namespaces of this machine, each with a network of its own.

usage: several_hosts_test.py VERBATIM MPI_COMMUNICATOR_TEST MPIEXEC SOURCE_DIRECTORY

Four hosts at a bridge share neither addresses nor loopback, host name, System V IPC or /dev/shm; only
the processor, its memory and the file system are one machine's. mpirun starts ranks through an rsh
agent. Everything lives in namespaces of the test's own and goes with its process. Exits with 77 where
such namespaces cannot be made: by root, or by users who may make namespaces of users.
"""
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

SKIPPED = 77
SEPARATE = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
# Beyond the half minute after which silence is a death: then something hangs.
LIMIT_S = 75
PORT = 50051


class Host:
  """A network of its own with the address 10.77.0.NUMBER, kept by a process that waits."""

  def __init__(self, name, number):
    self.name, self.address = name, f"10.77.0.{number}"
    # An address that every host has, as Docker's, is nobody's: the first that ranks try.
    setup = (f"hostname {name} && mount -t tmpfs tmpfs /dev/shm && ip link set lo up && "
             "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && "
             "ip link set docker0 up && echo set up && exec cat")
    self.process = subprocess.Popen(["unshare", "--net", "--mount", "--uts", "--ipc", "sh", "-c", setup],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert self.process.stdout.readline() == "set up\n", f"cannot set up {name}"
    self.inside = ["nsenter", "--target", str(self.process.pid), "--net", "--mount", "--uts", "--ipc"]
    ip("link", "add", f"to_{name}", "type", "veth", "peer", "name", "eth0", "netns", str(self.process.pid))
    ip("link", "set", f"to_{name}", "master", "switch", "up")
    subprocess.run(self.inside + ["ip", "addr", "add", f"{self.address}/24", "dev", "eth0"], check=True)
    subprocess.run(self.inside + ["ip", "link", "set", "eth0", "up"], check=True)

  def cut(self):
    """Takes the host off the bridge: nothing arrives any more, and nobody is told."""
    ip("link", "set", f"to_{self.name}", "nomaster")

  def rank_process(self, rank):
    """The process of the server's rank here."""
    network = os.readlink(f"/proc/{self.process.pid}/ns/net")
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
      with contextlib.suppress(OSError):
        if ((entry / "comm").read_text() == "verbatim\n" and os.readlink(entry / "ns/net") == network
            and f"OMPI_COMM_WORLD_RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0")):
          return int(entry.name)
    raise AssertionError(f"no rank {rank} on {self.name}")


class Process:
  """A process whose two outputs are read while it runs."""

  def __init__(self, command):
    self.output, self.arrived = "", threading.Condition()
    self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT)
    self.reader = threading.Thread(target=self.read, daemon=True)
    self.reader.start()

  def read(self):
    while chunk := os.read(self.process.stdout.fileno(), 1 << 16):
      with self.arrived:
        self.output += chunk.decode(errors="replace")
        self.arrived.notify_all()

  def until(self, what, times=1):
    """Waits for a text, as often as given."""
    self.until_true(lambda: self.output.count(what) >= times, f"not {times} times '{what}'")

  def until_true(self, condition, otherwise):
    with self.arrived:
      require(self.arrived.wait_for(condition, LIMIT_S), otherwise, self.output)

  def wait(self):
    status = self.process.wait(LIMIT_S)
    self.reader.join(LIMIT_S)
    return status

  def kill(self):
    self.process.kill()
    self.wait()


def ip(*arguments):
  subprocess.run(["ip", *arguments], check=True)


def require(condition, what, context=""):
  if not condition:
    raise AssertionError(f"{what}\n{context}")


class Test:

  def __init__(self, verbatim, communicator_test, mpiexec, source, scratch):
    self.verbatim, self.communicator_test, self.mpiexec = verbatim, communicator_test, mpiexec
    self.model = os.path.join(source, "tests/fixtures/reference/gguf_qwen3_q8_0.gguf")
    self.scratch = pathlib.Path(scratch)
    ip("link", "set", "lo", "up")
    ip("link", "add", "switch", "type", "bridge")
    ip("addr", "add", "10.77.0.254/24", "dev", "switch")
    ip("link", "set", "switch", "up")
    self.hosts = [Host(f"host-{letter}", i + 1) for i, letter in enumerate("abcd")]
    cases = "\n".join(f"{host.name}) set -- {' '.join(host.inside)} sh -c \"$*\";;" for host in self.hosts)
    self.agent = self.script("agent", f'host=$1\nshift\ncase $host in\n{cases}\nesac\nexec "$@"\n')
    # For ranks whose mpirun cannot tell how they ended.
    self.tell_status = self.script("tell_status",
                                   f'"$@"\nstatus=$?\necho $status >{scratch}/$OMPI_COMM_WORLD_RANK\nexit $status\n')

  def script(self, name, text):
    path = self.scratch / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)

  def launch(self, hosts, ranks, command, options=()):
    """Under mpirun on the first host, by turns on each; over TCP, whatever the hosts share."""
    return Process(hosts[0].inside + [
        self.mpiexec, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--map-by", "node",
        "--host", ",".join(f"{host.name}:{ranks}" for host in hosts), "--mca", "plm_rsh_agent", self.agent,
        "--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "eth0",
        "--mca", "oob_tcp_if_include", "eth0", *options, "-n", str(ranks), *command])

  def server_command(self, *flags):
    return [self.verbatim, "serve", "--model", self.model, "--port", str(PORT), "--kv-cache-bytes=16MiB",
            "--max-model-len=1024", "--threads=1", *flags]

  def serve(self, hosts, wrapper=()):
    server = self.launch(hosts, 2, [*wrapper, *self.server_command("--tensor-parallel-size=2",
                                                                   "--host=0.0.0.0")])
    server.until("ready on ")
    return server

  def ask(self, address, determinism, tokens):
    return Process([self.verbatim, "generate", "--target", f"{address}:{PORT}", "--raw", "--determinism",
                    determinism, "--temperature=0.7", "--seed=11", "--ignore-eos", "--show-stats",
                    f"--max-tokens={tokens}", "once upon a time there were two hosts"])

  def hashes(self, address):
    found = []
    for determinism in ("portable", "pinned"):
      client = self.ask(address, determinism, 40)
      require(client.wait() == 0, f"{determinism} failed", client.output)
      found += [line.split()[3] for line in client.output.splitlines() if line.startswith("sample 0 ")]
    require(len(found) == 2 and all(len(value.rstrip(",")) == 64 for value in found), "no hashes", str(found))
    return found

  def long_request(self, host):
    """A request that has begun to be answered, with most of it to come."""
    client = self.ask(host.address, "portable", 900)
    client.until_true(lambda: client.output, "no answer")
    require(client.process.poll() is None, "no request under way", client.output)
    return client

  def communicators(self, hosts):
    for ranks in (2, 4):
      run = self.launch(hosts, ranks, [self.communicator_test])
      require(run.wait() == 0 and "all ranks agree" in run.output, f"{ranks} ranks", run.output)
      for how in ("exchange", "report", "announcement"):
        run = self.launch(hosts, ranks, [self.communicator_test, how], ["--enable-recovery"])
        dead = "rank 0 has" if how == "announcement" else f"rank {ranks - 1} (process "
        run.until(f"survivors know: {dead}", ranks - 1)
        require("not true" not in run.output, f"{how}, {ranks} ranks", run.output)
        # Of several daemons that have lost a rank and may go on, Open MPI's do not always end.
        run.kill()

  def bits_and_orderly_end(self, hosts):
    one = Process(self.server_command())
    one.until("ready on ")
    expected = self.hashes("127.0.0.1")
    one.process.terminate()
    require(one.wait() == 0, "one process", one.output)
    server = self.serve(hosts)
    require(self.hashes(hosts[0].address) == expected, "other bits than one process's")
    client = self.long_request(hosts[0])
    os.kill(hosts[0].rank_process(0), 15)
    require(client.wait() == 0 and "900 output" in client.output, "not drained", client.output)
    require(server.wait() == 0 and "stopped" in server.output, "no orderly end", server.output)

  def killed_rank(self, hosts):
    server = self.serve(hosts)
    client = self.long_request(hosts[0])
    process = hosts[1].rank_process(1)
    os.kill(process, 9)
    name = f"rank 1 (process {process} on {hosts[1].name}) "
    require(client.wait() != 0 and f"UNAVAILABLE: {name}" in client.output, "the client",
            client.output + server.output)
    require(server.wait() != 0 and name in server.output, "the server", server.output)

  def run(self):
    # The silence of one pair of hosts is waited for while the other is used.
    pair, silent = self.hosts[:2], self.hosts[2:]
    statuses = []
    for rank in (0, 1):
      os.mkfifo(self.scratch / str(rank))
      statuses.append(Process(["cat", str(self.scratch / str(rank))]))
    server = self.serve(silent, wrapper=[self.tell_status])
    client = self.long_request(silent[0])
    name = f"rank 1 (process {silent[1].rank_process(1)} on {silent[1].name}) cannot be reached"
    silent[1].cut()
    self.communicators(pair)
    self.bits_and_orderly_end(pair)
    self.killed_rank(pair)
    require(client.wait() != 0 and f"UNAVAILABLE: {name}" in client.output, "the client", client.output)
    server.until(f"verbatim serve: {name}")
    # Both sides by themselves. mpirun waits on, for what it cannot reach.
    for rank, status in enumerate(statuses):
      require(status.wait() == 0 and status.output == "1\n", f"rank {rank}'s end", status.output)


def main():
  arguments = sys.argv[1:]
  if arguments[0] != "inside":
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    separate = ["unshare", *users, *SEPARATE]
    try:
      probe = subprocess.run(separate + ["ip", "link", "add", "probe", "type", "bridge"], capture_output=True,
                             text=True, check=False)
      problem = probe.stderr if probe.returncode != 0 else None
    except FileNotFoundError as error:
      problem = error
    if problem is not None:
      print(f"SKIPPED: ranks on several hosts: cannot make hosts with unshare and ip: {problem}")
      return SKIPPED
    arguments = [os.path.abspath(argument) for argument in [__file__, *arguments]]
    os.execvp(separate[0], [*separate, sys.executable, arguments[0], "inside", *arguments[1:]])
  # Gone with the namespace, whatever is left in it.
  scratch = tempfile.mkdtemp()
  subprocess.run(["mount", "-t", "tmpfs", "tmpfs", scratch], check=True)
  os.environ["TMPDIR"] = scratch
  try:
    Test(*arguments[1:], scratch).run()
  finally:
    subprocess.run(["umount", "--lazy", scratch], check=True)
    os.rmdir(scratch)
  print("ranks on several hosts: passed")
  return 0


if __name__ == "__main__":
  sys.exit(main())
