//go:build bench

package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// childEnv names what this program is to do instead of benchmarks.
const childEnv = "SREGISTRY_FS_BENCH_CHILD"

// answer is what a reader prints.
type answer struct {
	Bytes   int64
	Seconds float64 // from open to the end
	First   float64 // seconds from open to the first 4 KiB
	Reads   int
	SHA256  string
}

func child(op string, args []string) error {
	switch op {
	case "splice", "trace":
		return bareMount(op == "trace", args[0], args[1])
	case "kept":
		return awaitKept(args[0])
	}
	var a answer
	var err error
	switch op {
	case "sequential":
		a, err = sequential(args[0])
	case "random":
		a, err = random(args[0])
	case "sum":
		a, err = sum(args[0])
	default:
		err = fmt.Errorf("no such child: %s", op)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(a)
}

// ask runs a reader as who.
func (b *bench) ask(who *account, op, path string) (answer, error) {
	cmd := b.command(who, "/nonexistent", b.self, path)
	cmd.Env = append(cmd.Env, childEnv+"="+op)
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%s: %s", op, failed.Stderr)
	}
	var a answer
	if err == nil && len(out) > 0 {
		err = json.Unmarshal(out, &a)
	}
	return a, err
}

// sequential reads a file as dd bs=1M does. The name has been looked up
// before, as after an ls.
func sequential(path string) (a answer, err error) {
	if _, err := os.Stat(path); err != nil {
		return a, err
	}
	buf := make([]byte, 1<<20)
	start := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return a, err
	}
	defer f.Close()
	n, err := f.Read(buf[:4096])
	a.First = time.Since(start).Seconds()
	for a.Bytes = int64(n); err == nil; a.Bytes += int64(n) {
		n, err = f.Read(buf)
	}
	a.Seconds = time.Since(start).Seconds()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return a, err
}

// piece is what random reads ask for.
const piece = 128 << 10

// random reads every whole piece of the file once, in an order that is the
// same every time.
func random(path string) (a answer, err error) {
	f, err := os.Open(path)
	if err != nil {
		return a, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return a, err
	}
	buf := make([]byte, piece)
	order := rand.New(rand.NewPCG(1, 2)).Perm(int(info.Size() / piece))
	start := time.Now()
	for _, i := range order {
		if _, err := f.ReadAt(buf, int64(i)*piece); err != nil {
			return a, err
		}
		a.Reads++
	}
	a.Seconds = time.Since(start).Seconds()
	return a, nil
}

func sum(path string) (a answer, err error) {
	f, err := os.Open(path)
	if err != nil {
		return a, err
	}
	defer f.Close()
	h := sha256.New()
	a.Bytes, err = io.Copy(h, f)
	a.SHA256 = hex.EncodeToString(h.Sum(nil))
	return a, err
}

// awaitKept waits until a mount of ours has the whole image in its cache.
func awaitKept(path string) error {
	value := make([]byte, 16)
	for range 3000 {
		if n, err := unix.Getxattr(path, "user.sregistry.cached", value); err != nil {
			return err
		} else if string(value[:n]) == "yes" {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the image was not kept within 30 s")
}

// bareMount shows one file through a file system that does nothing else: the
// least that a mount of an ordinary user costs. With trace it prints at its end how many
// bytes the 128 KiB chunks have that were asked for. It ends with SIGTERM.
func bareMount(trace bool, path, mountpoint string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	file := &bareFile{f: f, size: info.Size(), trace: trace, touched: map[int64]bool{}}
	root := &fusefs.Inode{}
	server, err := fusefs.Mount(mountpoint, root, &fusefs.Options{
		MountOptions: fuse.MountOptions{Name: "bench", FsName: "bench", MaxWrite: 1 << 20, DirectMount: os.Geteuid() == 0},
		OnAdd: func(ctx context.Context) {
			root.AddChild(filepath.Base(path), root.NewPersistentInode(ctx, file, fusefs.StableAttr{}), true)
		},
	})
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		_ = server.Unmount()
	}()
	server.Wait()
	if trace {
		return json.NewEncoder(os.Stdout).Encode(answer{Bytes: file.union(), Reads: file.reads})
	}
	return nil
}

type bareFile struct {
	fusefs.Inode
	f     *os.File
	size  int64
	trace bool

	mu      sync.Mutex
	touched map[int64]bool
	reads   int
}

var _ interface {
	fusefs.NodeGetattrer
	fusefs.NodeOpener
	fusefs.NodeReader
} = (*bareFile)(nil)

func (b *bareFile) Getattr(_ context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o444, uint64(b.size)
	out.SetTimeout(time.Hour)
	return 0
}

// Open for a trace asks the kernel for every read as it was made: without
// the page cache there is no read-ahead.
func (b *bareFile) Open(context.Context, uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	if b.trace {
		return nil, fuse.FOPEN_DIRECT_IO, 0
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (b *bareFile) Read(_ context.Context, _ fusefs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n := min(int64(len(dest)), max(b.size-off, 0))
	if b.trace && n > 0 {
		b.mu.Lock()
		b.reads++
		for c := off / piece; c <= (off+n-1)/piece; c++ {
			b.touched[c] = true
		}
		b.mu.Unlock()
	}
	return fuse.ReadResultFd(b.f.Fd(), off, int(n)), 0
}

func (b *bareFile) union() (n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.touched {
		n += min(piece, b.size-c*piece)
	}
	return n
}
