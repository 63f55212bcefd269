package cache

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	iofs "io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	indexSlots = 16              // processes that can each have an index of one registry on disk
	indexDelay = time.Second     // longest time a change waits in memory
	indexOnce  = time.Nanosecond // bbolt: try its lock once
)

// Index is what one process remembers of one registry across restarts: small
// values by bucket and key, in a bbolt file that no other process uses. It
// is an accelerator and never an authority. A file that turns out to be
// damaged, at any time, is set aside and an empty one takes its place; where
// none can be written, the memory of this process must do. So reading and
// writing cannot fail; they only forget. Safe for concurrent use.
//
// Changes gather in memory and are written together: within indexDelay, at
// Flush and at Close.
type Index struct {
	dir string // of the slots
	log *slog.Logger

	// Lock order: file before mu. mu is never held across disk calls.
	file sync.Mutex // one transaction or replacement of db at a time
	db   *bbolt.DB  // nil: memory only
	path string     // of db
	lock *os.File   // held while the slot is ours

	mu      sync.Mutex
	pending map[indexKey][]byte // not yet written, sealed; nil value: to delete
	writing map[indexKey][]byte // being written right now
	timer   *time.Timer         // runs Flush; nil when nothing waits
	closed  bool
	warned  bool // of writes that fail
}

type indexKey struct{ bucket, key string }

// OpenIndex opens an index of the registry below dir, made if absent: the
// first slot that no other process holds, so that a remount finds what the mount
// before it knew. A directory that another user owns is an error; anything
// else that stands in the way is logged once and costs only the memory of
// earlier runs. The caller closes it.
func OpenIndex(dir, registry string, log *slog.Logger) (*Index, error) {
	sum := sha256.Sum256([]byte(registry))
	x := &Index{dir: filepath.Join(dir, hex.EncodeToString(sum[:16])), log: log, pending: map[indexKey][]byte{}}
	err := x.openSlot()
	if errors.Is(err, errForeign) {
		return nil, &backends.Error{Op: "index", Kind: backends.Denied, Err: err, Hint: "choose another directory with --cache-dir"}
	}
	if err != nil {
		log.Warn("listings will not be remembered across restarts", "error", err)
	}
	return x, nil
}

var errForeign = errors.New("not a directory of this user")

func (x *Index) openSlot() error {
	for _, dir := range []string{filepath.Dir(x.dir), x.dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := checkOwned(dir, os.Lstat); err != nil {
			return fmt.Errorf("%w: %w", errForeign, err)
		}
	}
	for slot := range indexSlots {
		path := filepath.Join(x.dir, fmt.Sprintf("%d.db", slot))
		lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				continue
			}
			return err
		}
		x.lock, x.path = lock, path
		err = x.openDB()
		if errors.Is(err, errDamaged) {
			err = x.replace()
		}
		return err
	}
	return fmt.Errorf("%d mounts of this registry use %s already", indexSlots, x.dir)
}

// openDB opens x.path after a look at its whole structure. The caller holds
// file, or is alone.
func (x *Index) openDB() error {
	return x.guard(func() error {
		if err := checkBolt(x.path); err != nil {
			return err
		}
		db, err := bbolt.Open(x.path, 0o600, &bbolt.Options{
			Timeout: indexOnce,
			OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
				return os.OpenFile(name, flag|syscall.O_NOFOLLOW, perm)
			},
		})
		if err == nil {
			x.db = db
		}
		return err
	})
}

// errDamaged says that the index file's contents make no sense.
var errDamaged = errors.New("damaged")

// guard runs f, which uses the file, and turns what bbolt does with
// a damaged one (panics, faults in the mapped pages) into errDamaged.
func (x *Index) guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return f()
}

// replace sets the damaged file aside, keeping one such file per slot, and
// starts an empty one. The caller holds file, or is alone.
func (x *Index) replace() error {
	// After a panic bbolt may hold its own locks for ever, so that closing it
	// might never end: it is left to the garbage collector, its mapping unused.
	x.db = nil
	old, _ := filepath.Glob(x.path + ".damaged-*")
	for _, name := range old {
		os.Remove(name)
	}
	aside := fmt.Sprintf("%s.damaged-%d", x.path, time.Now().Unix())
	err := os.Rename(x.path, aside)
	if err == nil || errors.Is(err, iofs.ErrNotExist) {
		err = x.openDB()
	}
	if err != nil {
		return err
	}
	x.log.Warn("a damaged index was set aside; the registry will be asked again", "file", aside)
	return nil
}

// damaged handles an err of guard: a damaged file is replaced, and if that
// fails the index lives in memory from here on. The caller holds file.
func (x *Index) damaged(err error) {
	if !errors.Is(err, errDamaged) {
		return
	}
	if err := x.replace(); err != nil {
		x.log.Warn("the index could not be rebuilt; listings will not be remembered across restarts", "error", err)
	}
}

// get gives the value of key and the time it was put with.
func (x *Index) get(bucket, key string) (value []byte, at time.Time, ok bool) {
	k := indexKey{bucket, key}
	sealed, found := x.waiting(k)
	if !found {
		x.file.Lock()
		defer x.file.Unlock()
		if x.db == nil {
			return nil, time.Time{}, false
		}
		err := x.guard(func() error {
			return x.db.View(func(tx *bbolt.Tx) error {
				if b := tx.Bucket([]byte(bucket)); b != nil {
					sealed = bytes.Clone(b.Get([]byte(key)))
				}
				if sealed != nil {
					if _, _, ok := unseal(k, sealed); !ok {
						return fmt.Errorf("%w: checksum", errDamaged)
					}
				}
				return nil
			})
		})
		if err != nil {
			x.damaged(err)
			return nil, time.Time{}, false
		}
	}
	if sealed == nil {
		return nil, time.Time{}, false
	}
	return unseal(k, sealed)
}

// waiting looks among the changes that are not on disk yet.
func (x *Index) waiting(k indexKey) ([]byte, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if v, ok := x.pending[k]; ok {
		return v, true
	}
	v, ok := x.writing[k]
	return v, ok
}

// indexEntry is one result of scan.
type indexEntry struct {
	key   string
	value []byte
	at    time.Time
}

// scan gives the entries whose keys start with prefix, in key order.
func (x *Index) scan(bucket, prefix string) []indexEntry {
	found := map[string][]byte{}
	x.file.Lock() // no flush moves changes from memory to the file meanwhile
	if x.db != nil {
		err := x.guard(func() error {
			return x.db.View(func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte(bucket))
				if b == nil {
					return nil
				}
				c := b.Cursor()
				for k, v := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, v = c.Next() {
					if _, _, ok := unseal(indexKey{bucket, string(k)}, v); !ok {
						return fmt.Errorf("%w: checksum", errDamaged)
					}
					found[string(k)] = bytes.Clone(v)
				}
				return nil
			})
		})
		if err != nil {
			clear(found)
			x.damaged(err)
		}
	}
	x.mu.Lock()
	for _, changes := range []map[indexKey][]byte{x.writing, x.pending} {
		for k, v := range changes {
			if k.bucket == bucket && strings.HasPrefix(k.key, prefix) {
				found[k.key] = v
			}
		}
	}
	x.mu.Unlock()
	x.file.Unlock()
	var all []indexEntry
	for key, sealed := range found {
		if sealed != nil {
			value, at, _ := unseal(indexKey{bucket, key}, sealed)
			all = append(all, indexEntry{key, value, at})
		}
	}
	slices.SortFunc(all, func(a, b indexEntry) int { return strings.Compare(a.key, b.key) })
	return all
}

// put remembers value, which it keeps, under key; at comes back with it.
func (x *Index) put(bucket, key string, at time.Time, value []byte) {
	k := indexKey{bucket, key}
	x.change(k, seal(k, at, value))
}

// del forgets key.
func (x *Index) del(bucket, key string) { x.change(indexKey{bucket, key}, nil) }

func (x *Index) change(k indexKey, sealed []byte) { x.changeAll(map[indexKey][]byte{k: sealed}) }

// changeAll makes sealed changes that get into one transaction.
func (x *Index) changeAll(batch map[indexKey][]byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	maps.Copy(x.pending, batch)
	if x.timer == nil && !x.closed {
		x.timer = time.AfterFunc(indexDelay, x.Flush)
	}
}

// Flush writes every change so far to disk, in one transaction. A failure
// (a full disk) keeps them in memory for the next try and is logged once.
func (x *Index) Flush() {
	x.file.Lock()
	defer x.file.Unlock()
	x.mu.Lock()
	if x.timer != nil {
		x.timer.Stop()
		x.timer = nil
	}
	if x.db == nil || len(x.pending) == 0 {
		x.mu.Unlock()
		return
	}
	x.writing, x.pending = x.pending, map[indexKey][]byte{}
	batch := x.writing
	x.mu.Unlock()

	err := x.write(batch)
	if errors.Is(err, errDamaged) {
		x.damaged(err)
		if x.db != nil {
			err = x.write(batch)
		}
	}

	x.mu.Lock()
	defer x.mu.Unlock()
	x.writing = nil
	if err == nil {
		x.warned = false
		return
	}
	for k, v := range batch {
		if _, newer := x.pending[k]; !newer {
			x.pending[k] = v
		}
	}
	if !x.warned {
		x.warned = true
		x.log.Warn("the index could not be written; trying again later", "error", err)
	}
}

func (x *Index) write(batch map[indexKey][]byte) error {
	return x.guard(func() error {
		return x.db.Update(func(tx *bbolt.Tx) error {
			for k, v := range batch {
				b, err := tx.CreateBucketIfNotExists([]byte(k.bucket))
				if err != nil {
					return err
				}
				if v == nil {
					err = b.Delete([]byte(k.key))
				} else {
					err = b.Put([]byte(k.key), v)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// Close writes what waits and releases the slot.
func (x *Index) Close() error {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.Flush()
	x.file.Lock()
	defer x.file.Unlock()
	var err error
	if x.db != nil {
		err = x.guard(x.db.Close)
		x.db = nil
	}
	if x.lock != nil {
		err = errors.Join(err, x.lock.Close())
		x.lock = nil
	}
	return err
}

// sealHead is the length of the checksum and the time before a value.
const sealHead = 4 + 8

// seal makes what is stored: a checksum over the place and all that follows,
// since bbolt checks none of its data; a time; the value.
func seal(k indexKey, at time.Time, value []byte) []byte {
	b := make([]byte, sealHead, sealHead+len(value))
	binary.BigEndian.PutUint64(b[4:], uint64(at.UnixNano()))
	b = append(b, value...)
	binary.BigEndian.PutUint32(b, sealSum(k, b[4:]))
	return b
}

func unseal(k indexKey, b []byte) (value []byte, at time.Time, ok bool) {
	if len(b) < sealHead || binary.BigEndian.Uint32(b) != sealSum(k, b[4:]) {
		return nil, time.Time{}, false
	}
	return b[sealHead:], time.Unix(0, int64(binary.BigEndian.Uint64(b[4:]))), true
}

func sealSum(k indexKey, rest []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum([]byte(k.bucket+"\x00"+k.key), table), table, rest)
}

// prune keeps the newest entries of a bucket: at most limit of them, of at
// most size bytes together.
func (x *Index) prune(bucket string, limit, size int) {
	type aged struct {
		key string
		at  uint64
		n   int
	}
	var all []aged
	x.file.Lock()
	if x.db != nil {
		err := x.guard(func() error {
			return x.db.View(func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte(bucket))
				if b == nil {
					return nil
				}
				return b.ForEach(func(k, v []byte) error {
					if len(v) < sealHead {
						return errDamaged
					}
					all = append(all, aged{string(k), binary.BigEndian.Uint64(v[4:]), len(v)})
					return nil
				})
			})
		})
		if err != nil {
			all = nil
			x.damaged(err)
		}
	}
	x.file.Unlock()
	slices.SortFunc(all, func(a, b aged) int { return cmp.Compare(b.at, a.at) })
	total := 0
	for i, e := range all {
		if total += e.n; i >= limit || total > size {
			x.del(bucket, e.key)
		}
	}
}
