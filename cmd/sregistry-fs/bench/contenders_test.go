//go:build bench

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// contender is a way to reach an image as a file.
type contender struct {
	name    string
	who     *account
	ours    bool
	missing string // why it cannot run here
	kind    kind
	// start gives the process that serves a mount in the foreground. Its
	// cache is in home, and what it finds there is from a run before.
	start func(at origin, home, mnt string) *exec.Cmd
	// path is where the image is below the mountpoint.
	path func(*image) string
	// cold and run say which measurements are worth their time.
	cold, warm, run bool
}

type kind int

const (
	mounted  kind = iota
	plain         // the servers' own file
	download      // curl to a local file, then that
)

func flat(img *image) string   { return img.name + ".simg" }
func nested(img *image) string { return filepath.Join(collection, img.name+":latest.simg") }

// contenders gives everything that is compared, in the order of the tables.
// The plain file and curl come first: the others are held against them.
func (b *bench) contenders() []*contender {
	b.t.Helper()
	ours := func(name string, who *account, spec func(origin) string) *contender {
		return &contender{name: name, who: who, ours: true, path: nested, cold: true, start: func(at origin, home, mnt string) *exec.Cmd {
			secrets := filepath.Join(home, ".sregistry")
			text := fmt.Appendf(nil, `{"registry": {"username": %q, "token": %q}}`, registryUser, registryToken)
			b.must(os.WriteFile(secrets, text, 0o600))
			if who != nil {
				b.must(os.Chown(secrets, int(who.uid), int(who.gid)))
			}
			return b.command(who, home, b.bin, "mount", "--quiet", "--cache-dir", filepath.Join(home, "cache"), spec(at), mnt)
		}}
	}
	web := func(at origin) string { return "http:" + at.http }
	all := []*contender{
		{name: localFile, kind: plain, cold: true, warm: true, run: true},
		{name: curlFile, kind: download, cold: true, run: true},
	}
	if b.user != nil {
		c := ours("sregistry-fs, root", nil, web)
		c.warm, c.run = true, true
		all = append(all, c)
	}
	c := ours("sregistry-fs, user", b.user, web)
	c.warm, c.run = true, true
	all = append(all, c)
	if b.user == nil {
		all = append(all, &contender{name: "sregistry-fs, root", ours: true, missing: "not run as root", cold: true, warm: true, run: true})
	}
	all = append(all, ours("sregistry-fs, registry without ranges", nil, func(at origin) string { return "registry:" + at.registry }))
	all = append(all, &contender{name: bareSplice, who: b.user, warm: true, path: flat, start: func(_ origin, home, mnt string) *exec.Cmd {
		cmd := b.command(b.user, home, b.self, filepath.Join(b.www(), collection, "large.simg"), mnt)
		cmd.Env = append(cmd.Env, childEnv+"=splice")
		return cmd
	}})

	rclone := func(name, missing string, env func(origin) []string) *contender {
		return &contender{name: name, missing: missing, path: flat, cold: true, warm: true, run: true, start: func(at origin, home, mnt string) *exec.Cmd {
			cmd := b.command(nil, home, "rclone", "mount", "b:"+collection, mnt, "--read-only",
				"--vfs-cache-mode", "full", "--vfs-cache-max-size", "20G", "--cache-dir", filepath.Join(home, "cache"))
			cmd.Env = append(append(cmd.Env, "RCLONE_CONFIG=/dev/null"), env(at)...)
			return cmd
		}}
	}
	noRclone, noS3fs, noS3 := b.installed("rclone"), b.installed("s3fs"), b.servers.noS3
	all = append(all, rclone("rclone, web", noRclone, func(at origin) []string {
		return []string{"RCLONE_CONFIG_B_TYPE=http", "RCLONE_CONFIG_B_URL=" + at.http}
	}))
	if noRclone == "" {
		noRclone = noS3
	}
	all = append(all, rclone("rclone, S3", noRclone, func(at origin) []string {
		return []string{
			"RCLONE_CONFIG_B_TYPE=s3", "RCLONE_CONFIG_B_PROVIDER=Other", "RCLONE_CONFIG_B_ENDPOINT=" + at.s3,
			"RCLONE_CONFIG_B_ACCESS_KEY_ID=" + s3User, "RCLONE_CONFIG_B_SECRET_ACCESS_KEY=" + s3Password,
		}
	}))
	if noS3fs == "" {
		noS3fs = noS3
	}
	return append(all, &contender{name: "s3fs, S3", missing: noS3fs, path: flat, cold: true, warm: true, run: true, start: func(at origin, home, mnt string) *exec.Cmd {
		password := filepath.Join(home, "password")
		b.must(os.WriteFile(password, []byte(s3User+":"+s3Password), 0o600))
		return b.command(nil, home, "s3fs", collection, mnt, "-f", "-o",
			"ro,use_path_request_style,url="+at.s3+",passwd_file="+password+",use_cache="+filepath.Join(home, "cache"))
	}})
}

const (
	localFile  = "the plain file"
	curlFile   = "curl -o"
	bareSplice = "bare FUSE (go-fuse, splice), user"

	registryUser  = "bench"
	registryToken = "0123456789abcdef0123456789abcdef01234567"
)

func (b *bench) installed(tool string) (missing string) {
	if _, err := exec.LookPath(tool); err != nil {
		return "not installed"
	}
	return ""
}

// daemon is a process that serves a mount.
type daemon struct {
	b    *bench
	cmd  *exec.Cmd
	who  *account
	mnt  string
	idle int64 // resident bytes when the mount was ready
	out  strings.Builder
	gone chan struct{}

	connection string // the kernel's number for it
}

// launch starts a file system and returns when it is mounted.
func (b *bench) launch(who *account, cmd *exec.Cmd, mnt string) (*daemon, error) {
	d := &daemon{b: b, cmd: cmd, who: who, mnt: mnt, gone: make(chan struct{})}
	cmd.Stderr = &d.out
	if cmd.Stdout == nil {
		cmd.Stdout = &d.out
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait(); close(d.gone) }()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if isMounted(mnt) {
			d.idle, d.connection = d.memory("VmRSS"), connection(mnt)
			return d, nil
		}
		select {
		case <-d.gone:
			return nil, fmt.Errorf("%s ended: %s", filepath.Base(cmd.Path), d.out.String())
		default:
		}
	}
	_ = d.stop()
	return nil, fmt.Errorf("%s did not mount: %s", filepath.Base(cmd.Path), d.out.String())
}

// stop unmounts as the user who mounted, and waits for the process.
func (d *daemon) stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	var err error
	for try := range 50 {
		select {
		case <-d.gone:
			if isMounted(d.mnt) {
				return d.b.unmount(d.who, d.mnt)
			}
			return nil
		case <-time.After(100 * time.Millisecond):
		}
		if try == 20 { // it does not care for signals
			err = d.b.unmount(d.who, d.mnt)
		}
	}
	d.abort()
	_ = d.cmd.Process.Kill()
	select {
	case <-d.gone:
	case <-time.After(5 * time.Second): // it hangs in the kernel; leave it behind
	}
	return fmt.Errorf("%s did not end: %w\n%s", filepath.Base(d.cmd.Path), err, d.out.String())
}

// abort cuts the file system off from the kernel, so that nothing waits for
// its answers any more.
func (d *daemon) abort() {
	_ = os.WriteFile("/sys/fs/fuse/connections/"+d.connection+"/abort", []byte("1"), 0)
}

// connection gives the number of the FUSE connection behind a mount.
func connection(mnt string) string {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(table)) {
		words := strings.Fields(line)
		if len(words) > 4 && words[4] == mnt {
			_, minor, _ := strings.Cut(words[2], ":")
			return minor
		}
	}
	return ""
}

func (b *bench) unmount(who *account, mnt string) error {
	out, err := b.command(who, "/nonexistent", "fusermount3", "-u", "-z", mnt).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func isMounted(mnt string) bool {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(strings.Split(string(table), "\n"), func(line string) bool {
		words := strings.Fields(line)
		return len(words) > 1 && words[1] == mnt
	})
}
