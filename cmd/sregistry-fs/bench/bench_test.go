//go:build bench

package bench

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// config is what the environment of `make bench` can change.
type config struct {
	quick   bool   // BENCH_QUICK=1: small images, one round: does it run at all?
	write   string // BENCH_WRITE=1: write docs/benchmarks.md
	rounds  int    // BENCH_ROUNDS: of which the median is shown
	largeMB int    // BENCH_MB: size of the image that is read from end to end
	padMB   int    // BENCH_PAD_MB: data beside Python in the image that is run
	who     string // BENCH_USER: the ordinary user, when run as root
	gateway string // BENCH_VERSITYGW: the S3 server's binary; empty: from PATH, else go install
}

func readConfig() (config, error) {
	c := config{rounds: 5, largeMB: 512, padMB: 96, who: "nobody", gateway: os.Getenv("BENCH_VERSITYGW")}
	c.quick = os.Getenv("BENCH_QUICK") == "1"
	if c.quick {
		c.rounds, c.largeMB, c.padMB = 1, 16, 8
	}
	if os.Getenv("BENCH_WRITE") == "1" {
		c.write = filepath.Join("..", "..", "..", "docs", "benchmarks.md")
	}
	var errs []error
	for name, to := range map[string]*int{"BENCH_ROUNDS": &c.rounds, "BENCH_MB": &c.largeMB, "BENCH_PAD_MB": &c.padMB} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				errs = append(errs, fmt.Errorf("%s=%s is no positive number", name, text))
			}
			*to = n
		}
	}
	if name := os.Getenv("BENCH_USER"); name != "" {
		c.who = name
	}
	return c, errors.Join(errs...)
}

// TestMain is also the way into the processes that have to run as another
// user: readers, and the bare file system to compare with.
func TestMain(m *testing.M) {
	if op := os.Getenv(childEnv); op != "" {
		if err := child(op, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// bench is one run: its folder, its servers and what it has measured.
type bench struct {
	t       *testing.T
	cfg     config
	dir     string // readable by everybody; everything is below it
	self    string // this program, where every user may run it
	bin     string // sregistry-fs
	user    *account
	servers *servers
	runs    int
	results results
}

// account is who runs a process; nil is who runs the benchmark.
type account struct {
	name     string
	uid, gid uint32
}

func (a *account) apply(cmd *exec.Cmd) {
	if a != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: a.uid, Gid: a.gid}}
	}
}

func TestBench(t *testing.T) {
	cfg, err := readConfig()
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, cfg)
	started := time.Now()
	before := loadAverage()

	large := b.largeImage()
	programs := b.programImages()
	b.servers = b.startServers(large, programs)
	all := b.contenders()
	for round := range cfg.rounds {
		t.Logf("round %d of %d, after %s", round+1, cfg.rounds, time.Since(started).Round(time.Second))
		for _, c := range all {
			b.readCold(c, large)
		}
		for _, c := range all {
			b.readWarm(c, large, round == 0)
		}
		for _, p := range programs {
			for _, c := range all {
				b.runCold(c, p)
			}
		}
	}
	page := b.report(reportInput{
		large: large, programs: programs, contenders: all,
		started: started, took: time.Since(started), loadBefore: before, loadAfter: loadAverage(),
	})
	fmt.Println("\n" + page)
	if cfg.write != "" {
		if err := os.WriteFile(cfg.write, []byte(page), 0o644); err != nil {
			t.Error(err)
		}
	}
}

func newBench(t *testing.T, cfg config) *bench {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	f.Close()
	for _, tool := range []string{"mksquashfs", "squashfuse", "fusermount3", "nginx", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (see README): %v", tool, err)
		}
	}
	// Not t.TempDir: its parents are closed to other users.
	dir, err := os.MkdirTemp("", "sregistry-fs-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, cfg: cfg, dir: dir, self: filepath.Join(dir, "bench"), bin: filepath.Join(dir, "sregistry-fs"), results: results{}}
	b.must(os.Chmod(dir, 0o755))
	me, err := os.Executable()
	b.must(err)
	b.must(copyFile(b.self, me))
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.bin, "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if os.Geteuid() == 0 {
		b.user = findUser(t, cfg.who)
	}
	return b
}

func findUser(t *testing.T, name string) *account {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("BENCH_USER: %v", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return &account{name: name, uid: uint32(uid), gid: uint32(gid)}
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// place makes a new folder that belongs to who.
func (b *bench) place(who *account, names ...string) string {
	b.t.Helper()
	b.runs++
	top := filepath.Join(b.dir, "runs", strconv.Itoa(b.runs))
	for _, name := range append([]string{""}, names...) {
		path := filepath.Join(top, name)
		b.must(os.MkdirAll(path, 0o755))
		if who != nil {
			b.must(os.Chown(path, int(who.uid), int(who.gid)))
		}
	}
	return top
}

// command is a process with an environment in which no proxy and no one's
// own settings matter.
func (b *bench) command(who *account, home, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CACHE_HOME=" + home, "XDG_RUNTIME_DIR=" + home, "LC_ALL=C"}
	who.apply(cmd)
	return cmd
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// gatewayBinary gives the S3 server, installing it into the run's folder if
// it has to, or says why there is none.
func (b *bench) gatewayBinary() (path, missing string) {
	if b.cfg.gateway != "" {
		return b.cfg.gateway, ""
	}
	if path, err := exec.LookPath("versitygw"); err == nil {
		return path, ""
	}
	if b.cfg.quick {
		return "", "versitygw is not installed"
	}
	b.t.Log("go install versitygw, an S3 server over a folder (minutes, the first time)")
	cmd := exec.Command("go", "install", "github.com/versity/versitygw/cmd/versitygw@latest")
	cmd.Env = append(os.Environ(), "GOBIN="+b.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Logf("go install versitygw: %v\n%s", err, out)
		return "", "versitygw is not installed"
	}
	return filepath.Join(b.dir, "versitygw"), ""
}

func moduleVersion(binary string) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return ""
	}
	return info.Main.Version
}
