// What is random in Go, a line each: its name and a value.
package main

import (
	"crypto/rand"
	"fmt"
	"hash/maphash"
	"log"
	mathrand "math/rand"
	"net/http"
)

// The order in which a map is gone through.
func order() []int {
	numbers := map[int]bool{}
	for i := 0; i < 64; i++ {
		numbers[i] = true
	}
	var order []int
	for i := range numbers {
		order = append(order, i)
	}
	return order[:16]
}

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		bytes := make([]byte, 8)
		if _, err := rand.Read(bytes); err != nil {
			log.Print(err)
		}
		fmt.Fprintf(w, "crypto/rand\t%x\n", bytes)
		fmt.Fprintf(w, "math/rand\t%d\n", mathrand.Int63())
		fmt.Fprintf(w, "hash/maphash\t%d\n", maphash.String(maphash.MakeSeed(), "a text"))
		fmt.Fprintf(w, "the order of maps\t%v\n", order())
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:8000", nil))
}
