// What the pods of the tests run.
//
//	guest               answers every request at port 8080 with its host name
//	guest memory        takes all the memory there is, and uses it
//	guest disk FILE     fills the disk on which FILE is, and keeps it full
package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"time"
)

const piece = 16 << 20

func main() {
	switch {
	case len(os.Args) == 1:
		serve()
	case len(os.Args) == 2 && os.Args[1] == "memory":
		takeMemory()
	case len(os.Args) == 3 && os.Args[1] == "disk":
		fillDisk(os.Args[2])
	default:
		fmt.Fprintln(os.Stderr, "usage: guest [memory | disk FILE]")
		os.Exit(2)
	}
}

func serve() {
	name, err := os.Hostname()
	check(err)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, name) })
	check(http.ListenAndServe(":8080", nil))
}

// takeMemory takes it by several threads, faster than the kernel finds pages that others can do without.
func takeMemory() {
	for range 4 {
		go func() {
			var held [][]byte
			for {
				memory := make([]byte, piece)
				for at := 0; at < len(memory); at += 4096 {
					memory[at] = 1 // a page that nobody writes takes no memory
				}
				held = append(held, memory)
			}
		}()
	}
	select {}
}

// fillDisk reserves the room instead of writing it, in ever smaller pieces: as full, and sooner.
func fillDisk(name string) {
	file, err := os.Create(name)
	check(err)
	var end int64
	for size := int64(1 << 30); size >= 4096; {
		switch err := syscall.Fallocate(int(file.Fd()), 0, end, size); {
		case err == nil:
			end += size
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case !errors.Is(err, syscall.EINTR):
			check(err)
		}
		if size < 4096 { // what others free is taken as well
			fmt.Println("full after", end, "bytes")
			time.Sleep(100 * time.Millisecond)
			size = 4096
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
