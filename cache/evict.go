package cache

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	// partialLife is how long an unfinished image waits to be read again.
	partialLife = 30 * 24 * time.Hour
	// maxDamaged is how many broken files are kept for a look.
	maxDamaged = 4
	// reserve is what eviction frees beyond need when the disk is full.
	reserve = 16 << 20
	// lookAgain is how long a store that had no room waits before it looks again.
	lookAgain = 5 * time.Second
)

var errNoRoom = fmt.Errorf("the cache has reached its size or the disk its floor: %w", syscall.ENOSPC)

// room says whether more may be written, from one scan to the next.
type room struct {
	written atomic.Int64 // since the last scan
	full    atomic.Bool
	mu      sync.Mutex // held by the one goroutine that looks; before evicting
	at      time.Time  // of the last look

	evicting sync.Mutex // held across the disk's work
}

// kept is one thing that eviction may take.
type kept struct {
	path   string // of a blob, a partial directory or a damaged file
	where  string // blobDir, partialDir or damagedDir
	bytes  int64  // allocated
	used   time.Time
	pinned bool
}

// Usage gives the allocated bytes of blobs and partial files, of every
// process, and the bound (0: none). It reads the directory.
func (s *Store) Usage() (used, limit int64) {
	for _, k := range s.scan() {
		used += k.bytes
	}
	return used, s.opt.MaxBytes
}

// Evict removes what was used longest ago until the bounds hold or nothing is
// left that may go: nothing that is open in any process, and nothing pinned.
func (s *Store) Evict(ctx context.Context) error { return s.evict(ctx, s.opt.MaxBytes, 0) }

// evict brings the store within limit (0: none) and frees need bytes beyond the floor.
func (s *Store) evict(ctx context.Context, limit, need int64) error {
	// One at a time: two that hold the same file open free nothing of it.
	s.room.evicting.Lock()
	defer s.room.evicting.Unlock()
	all := s.scan()
	var used int64
	for _, k := range all {
		used += k.bytes
	}
	slices.SortFunc(all, func(a, b kept) int { return a.used.Compare(b.used) })
	for _, k := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		over := limit > 0 && used > limit
		if !over && s.free() >= s.opt.FreeFloor+need {
			return nil
		}
		if k.pinned {
			continue
		}
		switch err := s.drop(k); {
		case err == nil:
			used -= k.bytes
			s.opt.Log.Debug("evicted", "file", k.path, "bytes", k.bytes)
		case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, os.ErrNotExist):
		default:
			return &backends.Error{Op: "evict", Err: err}
		}
	}
	return nil
}

// drop removes one thing, or says EWOULDBLOCK if somebody uses it.
func (s *Store) drop(k kept) error {
	switch k.where {
	case damagedDir:
		return s.disk.root.Remove(k.path)
	case partialDir:
		lock, err := lockPartial(s.disk, k.path, false)
		if err != nil {
			return err
		}
		return errors.Join(removePartial(s.disk, k.path), lock.Close())
	}
	f, err := s.disk.open(k.path, os.O_RDONLY)
	if err != nil {
		return err
	}
	if err = flock(f, unix.LOCK_EX); err == nil {
		err = s.disk.root.Remove(k.path)
	}
	return errors.Join(err, f.Close())
}

// scan lists what the store keeps. What vanishes meanwhile is left out.
func (s *Store) scan() []kept {
	var all []kept
	pinned := s.pins()
	for _, where := range []string{blobDir, partialDir, damagedDir} {
		for _, name := range s.disk.list(where) {
			path := filepath.Join(where, name)
			k := kept{path: path, where: where, pinned: pinned[name]}
			parts := []string{path}
			if where == partialDir {
				parts = []string{filepath.Join(path, "lock"), filepath.Join(path, "map"), filepath.Join(path, "data")}
				k.pinned = pinned[name[:min(len(name), 64)]]
			}
			found := false
			for _, part := range parts {
				if fi, err := s.disk.root.Lstat(part); err == nil {
					st := fi.Sys().(*syscall.Stat_t)
					k.bytes += st.Blocks * 512
					k.used = later(k.used, later(time.Unix(st.Atim.Unix()), fi.ModTime()))
					found = true
				}
			}
			if where == damagedDir {
				k.used = time.Time{} // goes first
			}
			if found {
				all = append(all, k)
			}
		}
	}
	return all
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pins gives the keys that are pinned and the digests they stand for.
func (s *Store) pins() map[string]bool {
	pinned := make(map[string]bool)
	for _, key := range s.disk.list(pinDir) {
		pinned[key] = true
		if digest, _, ok := s.disk.readLink(key); ok {
			pinned[digest.Hex] = true
		}
	}
	return pinned
}

// list gives the names in a directory, as far as it can be read.
func (d *disk) list(sub string) []string {
	f, err := d.root.Open(sub)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	return names
}

// free gives the bytes that an ordinary user may still write.
func (s *Store) free() int64 {
	var st unix.Statfs_t
	if unix.Statfs(s.opt.Dir, &st) != nil {
		return 1 << 62 // not known: no reason to evict
	}
	return int64(st.Bavail) * st.Bsize
}

// wrote counts bytes into the next look at the bounds.
func (s *Store) wrote(n int64) {
	step := int64(64 << 20)
	if s.opt.MaxBytes > 0 {
		step = min(step, max(s.opt.MaxBytes/16, chunkSize))
	}
	if written := s.room.written.Add(n); written < step {
		return
	} else if written >= 2*step {
		// Somebody looks, and takes longer than we take to write: wait, or the
		// bound would be as far behind as the disk is slow.
		s.room.mu.Lock()
		if s.room.written.Load() >= step {
			s.look()
		}
		s.room.mu.Unlock()
		return
	}
	s.makeRoom()
}

// hasRoom reports whether a flight may write. Eviction has been tried.
func (s *Store) hasRoom() bool {
	if !s.room.full.Load() {
		return true
	}
	s.room.mu.Lock()
	wait := s.opt.Now().Sub(s.room.at) < lookAgain
	s.room.mu.Unlock()
	if !wait {
		s.makeRoom()
	}
	return !s.room.full.Load()
}

// makeRoom looks at the bounds and evicts, unless another goroutine does.
func (s *Store) makeRoom() {
	if s.room.mu.TryLock() {
		s.look()
		s.room.mu.Unlock()
	}
}

// look is makeRoom for the holder of room.mu.
func (s *Store) look() {
	if s.opt.MaxBytes <= 0 && s.opt.FreeFloor <= 0 {
		return
	}
	s.room.written.Store(0)
	s.room.at = s.opt.Now()
	if err := s.evict(s.ctx, s.opt.MaxBytes, 0); err != nil && s.ctx.Err() == nil {
		s.opt.Log.Warn("the cache could not be brought within its bounds", "error", err)
	}
	used, limit := s.Usage()
	s.room.full.Store(limit > 0 && used > limit || s.free() < s.opt.FreeFloor)
}

// sweep removes what no process will come back to. It runs once, at the start.
func (s *Store) sweep() {
	old := s.opt.Now().Add(-partialLife)
	for _, k := range s.scan() {
		private := len(filepath.Base(k.path)) != 2*32
		if s.ctx.Err() == nil && k.where == partialDir && !k.pinned && (private || k.used.Before(old)) {
			_ = s.drop(k) // in use, or gone
		}
	}
	for _, name := range s.disk.list(linkDir) {
		path := filepath.Join(linkDir, name)
		fi, err := s.disk.root.Lstat(path)
		if err != nil || fi.ModTime().After(old) {
			continue
		}
		digest, _, ok := s.disk.readLink(name)
		if _, here := s.disk.hasBlob(digest); !ok || !here {
			_ = s.disk.root.Remove(path)
		}
	}
	damaged := s.disk.list(damagedDir)
	age := make(map[string]time.Time)
	for _, name := range damaged {
		if fi, err := s.disk.root.Lstat(filepath.Join(damagedDir, name)); err == nil {
			st := fi.Sys().(*syscall.Stat_t)
			age[name] = time.Unix(st.Ctim.Unix())
		}
	}
	slices.SortFunc(damaged, func(a, b string) int { return cmp.Or(age[b].Compare(age[a]), cmp.Compare(a, b)) })
	for _, name := range damaged[min(len(damaged), maxDamaged):] {
		_ = s.disk.root.Remove(filepath.Join(damagedDir, name))
	}
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func hexOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
